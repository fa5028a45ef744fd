"""The spectral norm of dense layers and convolutions: what its strategies share."""

import abc
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from flowplug._functions import Function
from flowplug._precision import at_least_single, full_precision
from flowplug.lipschitz.norms._frequencies import at_frequency, points, slack
from flowplug.lipschitz.norms._operator_norm import OperatorNorm


def symbol(weight: Tensor) -> tuple[Tensor, float]:
    r"""The matrices ``(F, out, in)`` of a convolution on the grid of its frequencies, and the factor of that.

    A dense layer, and a convolution of a single tap, is one matrix, and the factor 1.
    """
    weight, kernel = at_least_single(weight), weight.shape[2:]
    if math.prod(kernel) == 1:
        return weight.flatten(1).unsqueeze(0), 1.0
    spectrum = torch.fft.rfftn(weight, s=points(kernel), dim=tuple(range(2, weight.dim())))
    return spectrum.flatten(2).permute(2, 0, 1), slack(kernel)


def select(stack: Tensor, index: Tensor) -> Tensor:
    """The matrix ``(out, in)`` of a stack ``(F, out, in)`` at a scalar index, without reading it from the device."""
    return stack.index_select(0, index.reshape(1)).squeeze(0)


def is_wide(matrix: Tensor) -> bool:
    """Whether ``(..., out, in)`` has fewer rows than columns."""
    return matrix.shape[-2] < matrix.shape[-1]


def smaller_gram(matrix: Tensor) -> Tensor:
    """The smaller one of ``W W^H`` and ``W^H W``."""
    return matrix @ matrix.mH if is_wide(matrix) else matrix.mH @ matrix


class _WithGradient(Function):
    """Values ``(N,)`` of the matrices, with their gradients; and how to find these again, to differentiate them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, gradient: Callable[[Tensor, Tensor], Tensor], *pairs: Tensor) -> Tensor:
        del gradient, pairs
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401
        del output
        ctx.gradient = inputs[1]
        ctx.save_for_backward(*inputs[2:])
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        saved = ctx.saved_tensors
        matrices, gradients = saved[::2], saved[1::2]
        if torch.is_grad_enabled():
            gradients = [ctx.gradient(*pair) for pair in zip(matrices, gradients, strict=True)]
        return None, None, *chain.from_iterable((g * x, None) for g, x in zip(grad.unbind(), gradients, strict=True))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:  # noqa: ANN401
        changes, gradients = tangents[2::2], ctx.saved_tensors[1::2]
        products = [
            gradient.new_zeros((), dtype=gradient.real.dtype)
            if change is None
            else (gradient.conj() * change).real.sum()
            for gradient, change in zip(gradients, changes, strict=True)
        ]
        return torch.stack(products)


class _Traced(_WithGradient):
    jvp = staticmethod(torch.autograd.Function.jvp)


class SpectralNorm(OperatorNorm):
    """A norm found, with its gradient, outside autograd: of one matrix, or of matrices of one shape together.

    Autograd would take two products for each one, and keep all of them.
    """

    @abc.abstractmethod
    def norms(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        """Upper bounds ``(*F,)`` on the norms of matrices ``(*F, out, in)``, and their gradients."""

    @abc.abstractmethod
    def tops(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """For each of several kernels the index of the frequency of the largest norm."""

    @abc.abstractmethod
    def differentiable(self, matrix: Tensor, gradient: Tensor) -> Tensor:
        """The gradient found for a matrix, as a differentiable function of the latter."""

    def orders(self) -> tuple[float, float]:
        """From 2 to 2."""
        return 2.0, 2.0

    def measure(self, weight: Tensor) -> Tensor:
        """The norm, for a convolution the largest of all frequencies."""
        return self._measure([weight])[0]

    def project_all(self, weights: Sequence[Tensor], bounds: Sequence[float]) -> list[Tensor]:
        """As one by one, with matrices measured together."""
        if (type(self).measure, type(self).project) != (SpectralNorm.measure, OperatorNorm.project):
            return super().project_all(weights, bounds)
        found = self._measure(weights)
        if len(set(bounds)) == 1:
            shares = bounds[0] / found.clamp(min=bounds[0])
        else:
            limits = _on_device(bounds, found)
            shares = limits / found.maximum(limits)
        return [weight * share for weight, share in zip(weights, shares.unbind(), strict=True)]

    def _measure(self, weights: Sequence[Tensor]) -> Tensor:
        """The norms ``(N,)``: each kernel at the one frequency where it is largest."""
        kernels = [weight for weight in weights if math.prod(weight.shape[2:]) > 1]
        with torch.no_grad(), full_precision(weights[0]):
            tops = iter(self.tops(kernels))
        matrices, factors = [], []
        for weight in map(at_least_single, weights):
            single = math.prod(weight.shape[2:]) == 1
            matrices.append(weight.flatten(1) if single else at_frequency(weight, next(tops)))
            factors.append(1.0 if single else slack(weight.shape[2:]))
        found = self._measure_all(matrices)
        return found * _on_device(factors, found) if kernels else found

    def norms_of(self, stacks: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """`norms` of each of several stacks, together where it pays."""
        return [self.norms(stack) for stack in stacks]

    def _measure_all(self, matrices: Sequence[Tensor]) -> Tensor:
        """The norms of all, those of one shape, up to transposition, in a stack."""
        alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, matrix in enumerate(matrices):
            alike[(matrix.dtype, *sorted(matrix.shape))].append(i)
        values, gradients = list(matrices), list(matrices)
        with torch.no_grad(), full_precision(matrices[0]):
            groups = list(alike.values())
            stacks = [
                torch.stack([matrices[i].mT if is_wide(matrices[i]) else matrices[i] for i in group])
                if len(group) > 1
                else matrices[group[0]]
                for group in groups
            ]
            for group, (value, gradient) in zip(groups, self.norms_of(stacks), strict=True):
                if len(group) == 1:
                    values[group[0]], gradients[group[0]] = value, gradient
                    continue
                for i, part, slope in zip(group, value, gradient, strict=True):
                    values[i], gradients[i] = part, slope.mT if is_wide(matrices[i]) else slope
        pairs = chain.from_iterable(zip(matrices, gradients, strict=True))
        if torch.compiler.is_compiling() and not torch.is_grad_enabled():
            return torch.stack(values)
        # The compiler follows classes that it finds by name, and no derivatives in forward mode.
        function = _Traced.apply if torch.compiler.is_compiling() else _WithGradient.run
        found: Tensor = function(torch.stack(values), self.differentiable, *pairs)
        return found


def _on_device(numbers: Sequence[float], like: Tensor) -> Tensor:
    """A tensor of these, made on the device, which a list would have to be copied to."""
    return torch.stack([like.new_full((), number) for number in numbers])
