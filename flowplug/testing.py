"""The conformance harness: laws every invertible transform obeys, each named after what it protects.

Works for flowplug transforms, for their adapters, and for your own: anything with ``forward(x, context)`` and
``inverse(y, context)`` that return (output, ladj). Needs torch only.
"""

import copy
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flowplug._arguments import require_instance, require_ints
from flowplug._comparison import ConformanceError as ConformanceError
from flowplug._comparison import deviation, require, require_close
from flowplug._comparison import z_test as z_test
from flowplug._errors import NotConverged
from flowplug._noise import no_logdet
from flowplug._residual import ResidualTransform
from flowplug.branch import Branch
from flowplug.lipschitz import InducedNorm


@dataclass(frozen=True)
class Case:
    """What a law is checked on.

    Attributes:
        make: Builds a fresh transform, and passes keywords on to its constructor.
        x: Inputs ``(B, *event)`` with B >= 2, in the dtype and on the device to test.
        context: ``(B, context_features)``, or ``None`` for an unconditional transform.
        draws: Number of draws of each z-test.
    """

    make: Callable[..., nn.Module]
    x: Tensor
    context: Tensor | None = None
    draws: int = 400

    def __post_init__(self) -> None:
        if isinstance(self.make, nn.Module) or not callable(self.make):
            raise TypeError(
                "check_transform(make=...) must build a fresh transform, as lambda **keywords: Mine(2, **keywords) "
                f"does; got an object of class {type(self.make).__name__}"
            )
        require_instance("check_transform", "x", self.x, Tensor, "torch.randn(4, 2)")
        if self.context is not None:
            require_instance("check_transform", "context", self.context, Tensor, "torch.randn(4, 3)")
        require_ints("check_transform", draws=self.draws)

    def build(self, *, training: bool) -> Any:  # noqa: ANN401 -- a host's module
        """A fresh transform, past its data-dependent initialisation."""
        transform: Any = self.make().to(self.x.device, self.x.dtype).train()
        with torch.no_grad():
            transform(self.x, self.context)
        return transform.train(training)


def check_transform(
    make: Callable[..., nn.Module], x: Tensor, context: Tensor | None = None, *, draws: int = 400, seed: int = 0
) -> None:
    r"""Checks all laws on a transform.

    Stochastic log-dets are compared with the log-determinant of the autograd Jacobian by z-tests, value by value and
    gradient entry by gradient entry, with random per-sample weights. The thresholds give a correct transform one false
    alarm in a million; a bias of ``(t + 3) / sqrt(draws)`` standard deviations of one draw, t the threshold (5 to 7),
    is found with probability 0.999.

    Args:
        make: Builds a fresh transform, its networks included, and passes keywords on to the constructor, so that a
            misspelt one can be tried.
        x: Inputs ``(B, *event)`` with B >= 2, in the dtype (float64 for sharp tests) and on the device to test.
        context: ``(B, context_features)``, or ``None`` for an unconditional transform.
        draws: Number of draws of each z-test.
        seed: Seeds torch's generator for each law; the caller's generator state is restored.

    Raises:
        ConformanceError: A law is broken; the message names the law, the deviation and what is allowed.

    Example:
        >>> def make(**keywords):
        ...     return ResidualTransform(LipschitzMLP(2, (8, 8)), **keywords)
        >>> check_transform(make, torch.randn(4, 2, dtype=torch.float64))
    """
    require_ints("check_transform", seed=seed)
    case = Case(make, x, context, draws)
    for name, law in LAWS.items():
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            try:
                law(case)
            except ConformanceError as error:
                raise ConformanceError(f"law '{name}': {error}") from None


def keeps_shape_and_dtype(case: Case) -> None:
    """Outputs have the input's shape, dtype and device, ladjs the batch shape, for any batch dimensions."""
    event, count = case.x.shape[1:], len(case.x)
    for dtype in (torch.float32, torch.float64):
        transform = case.build(training=True).to(dtype)
        for batch in ((count,), (1, count), (), (0,)):
            size = math.prod(batch)
            x = case.x[:size].to(dtype).reshape(*batch, *event)
            context = case.context
            if context is not None:
                context = context[:size].to(dtype).reshape(*batch, context.shape[-1])
            for direction in (transform, transform.inverse):
                for tensor, shape in zip(direction(x, context), (x.shape, batch), strict=True):
                    got, wanted = (tensor.shape, tensor.dtype, tensor.device), (torch.Size(shape), dtype, x.device)
                    require(got == wanted, f"expected {wanted}, got {got}")


def leaves_inputs_alone(case: Case) -> None:
    """The caller's tensors are neither changed nor marked, in any grad mode, and ladjs may be added to in place."""
    transform = case.build(training=True)
    inputs = [case.x] if case.context is None else [case.x, case.context]
    before = [tensor.clone() for tensor in inputs]
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for direction in (transform, transform.inverse):
            with mode():
                output, ladj = direction(case.x, case.context)
            require(all(map(torch.equal, inputs, before)), "an input was changed")
            require(not any(tensor.requires_grad for tensor in inputs), "an input was marked requires_grad")
            if mode is torch.enable_grad:
                with torch.no_grad():
                    ladj += 1
                loss = output.sum() + ladj.sum()
                if loss.requires_grad:  # a transform without parameters has no graph here
                    loss.backward()
            else:
                require(not (output.requires_grad or ladj.requires_grad), f"a graph was built under {mode.__name__}")


def inverts(case: Case) -> None:
    """``inverse(forward(x)) = x`` and ``forward(inverse(y)) = y`` to rounding, or `NotConverged`."""
    for training in (True, False):
        transform = case.build(training=training)
        for there, back in ((transform, transform.inverse), (transform.inverse, transform)):
            with torch.no_grad():
                try:
                    z = back(there(case.x, case.context)[0], case.context)[0]
                except NotConverged:
                    continue
            require_close("round trip", z, case.x, units=100)


def inverts_ladj(case: Case) -> None:
    """In eval mode outputs and ladjs repeat, and the ladj of the inverse is minus that of forward."""
    transform = case.build(training=False)
    with torch.no_grad():
        y, ladj = transform(case.x, case.context)
        again = transform(case.x, case.context)
        inverse_ladj = transform.inverse(y, case.context)[1]
    require(torch.equal(y, again[0]) and torch.equal(ladj, again[1]), "two calls in eval mode disagree")
    require_close("ladj of the inverse", inverse_ladj, -ladj)


def estimates_ladj(case: Case) -> None:
    """The ladj is log|det| of the autograd Jacobian, exactly or on average."""
    transform = case.build(training=True)
    truth = _exact_ladj(transform, case.x, case.context, differentiable=False)
    with torch.no_grad():
        _require_mean("ladj", case, lambda: [transform(case.x, case.context)[1]], [truth])


def estimates_ladj_gradient(case: Case) -> None:
    """The gradient of a randomly weighted sum of ladjs is right, for parameters, inputs and context."""
    transform = case.build(training=True)
    x = case.x.detach().requires_grad_()
    context = None if case.context is None else case.context.detach().requires_grad_()
    leaves = [*transform.parameters(), x, *([] if context is None else [context])]
    weights = torch.randn(len(x), dtype=x.dtype, device=x.device)

    def gradient(ladj: Tensor) -> list[Tensor]:
        if not ladj.requires_grad:  # a constant: right for an affine map without parameters, and zero in the oracle too
            return [torch.zeros_like(leaf) for leaf in leaves]
        return list(torch.autograd.grad(weights @ ladj, leaves, allow_unused=True, materialize_grads=True))

    truth = gradient(_exact_ladj(transform, x, context, differentiable=True))
    _require_mean("gradient of the ladj", case, lambda: gradient(transform(x, context)[1]), truth)


def reaches_every_parameter(case: Case) -> None:
    """Every parameter, the input and the context get a finite gradient, forward and through the inverse."""
    transform = case.build(training=True)
    for direction in (transform, transform.inverse):
        transform.zero_grad(set_to_none=True)
        x = case.x.detach().requires_grad_()
        context = None if case.context is None else case.context.detach().requires_grad_()
        output, ladj = direction(x, context)
        (output.square().sum() + ladj.sum()).backward()
        leaves = {**dict(transform.named_parameters()), "the input": x}
        for name, leaf in leaves.items() if context is None else {**leaves, "the context": context}.items():
            require(leaf.grad is not None, f"{name} got no gradient")
            require(bool(leaf.grad.isfinite().all()), f"the gradient of {name} is not finite")
            require(name != "the context" or bool(leaf.grad.any()), "the output does not depend on the context")


def differentiates_the_inverse(case: Case) -> None:
    """``forward(inverse(y))`` is y, so its derivatives are those of the identity: the two maps' gradients cancel."""
    transform = case.build(training=False)
    y = case.x.detach().requires_grad_()
    context = None if case.context is None else case.context.detach().requires_grad_()
    x, inverse_ladj = transform.inverse(y, context)
    output, ladj = transform(x, context)
    weights = torch.randn_like(y)
    leaves = [y, *transform.parameters(), *([] if context is None else [context])]
    loss = (weights * output).sum() + (ladj + inverse_ladj).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    for gradient, wanted in zip(gradients, [weights, *map(torch.zeros_like, leaves[1:])], strict=True):
        require_close("gradient of forward(inverse(y))", gradient, wanted, units=10_000)


def respects_its_bound(case: Case) -> None:
    """After 200 Adam steps that enlarge the Jacobian of g, without a manual call, it is within the stated bound."""
    transform = case.build(training=True)
    for residual in transform.modules():
        if not isinstance(residual, ResidualTransform):
            continue
        context = case.context if residual.context_features else None
        optimizer = torch.optim.Adam(residual.g.parameters(), lr=0.05)
        for _ in range(200):
            jacobian = Branch.of(residual.g, context).jacobian(case.x)[1]
            optimizer.zero_grad()
            torch.autograd.backward(-jacobian.square().sum())
            optimizer.step()
        lipschitz = residual.lipschitz
        jacobian = Branch.of(residual.g, context).jacobian(case.x)[1].detach()
        order = 2.0 if lipschitz.domain is None else lipschitz.domain
        # From below where the norm has no closed form.
        largest = max(float(InducedNorm(order, order).estimate(matrix)) for matrix in jacobian.flatten(2))
        require(largest <= float(lipschitz) * 1.00001, f"a Jacobian of norm {largest} exceeds the bound {lipschitz}")


def saves_and_copies(case: Case) -> None:
    """A strict state_dict round trip into a fresh module, deepcopy and pickling keep the outputs; repr works."""
    transform = case.build(training=False)
    fresh = case.make().to(case.x.device, case.x.dtype).eval()
    fresh.load_state_dict(transform.state_dict())
    buffer = io.BytesIO()
    torch.save(transform, buffer)
    buffer.seek(0)
    twins = {"state_dict": fresh, "deepcopy": copy.deepcopy(transform)}
    twins["pickle"] = torch.load(buffer, weights_only=False)
    require(type(transform).__name__ in repr(transform), "repr does not name the class")
    with torch.no_grad():
        wanted = transform(case.x, case.context)
        for way, twin in twins.items():
            require(all(map(torch.equal, twin(case.x, case.context), wanted)), f"{way} changes the outputs")


def refuses_unknown_keywords(case: Case) -> None:
    """A misspelt keyword is a TypeError, not swallowed."""
    try:
        case.make(misspelt_keyword=0)
    except TypeError:
        return
    raise ConformanceError("the constructor accepted misspelt_keyword=0")


LAWS: dict[str, Callable[[Case], None]] = {
    "shape and dtype": keeps_shape_and_dtype,
    "inputs left alone": leaves_inputs_alone,
    "round trip": inverts,
    "ladj of the inverse": inverts_ladj,
    "value of the ladj": estimates_ladj,
    "gradient of the ladj": estimates_ladj_gradient,
    "every parameter": reaches_every_parameter,
    "derivative of the inverse": differentiates_the_inverse,
    "Lipschitz bound": respects_its_bound,
    "saving and copying": saves_and_copies,
    "unknown keywords": refuses_unknown_keywords,
}


def _require_mean(name: str, case: Case, draw: Callable[[], Sequence[Tensor]], truth: Sequence[Tensor]) -> None:
    first, second = draw(), draw()
    allowed = 10_000 * torch.finfo(case.x.dtype).eps
    exact = all(deviation(name, got, wanted) <= allowed for got, wanted in zip(first, truth, strict=True))
    # Two draws of an estimate may coincide by chance; where they are not exact as well, their mean is tested.
    if not (exact and all(map(torch.equal, first, second))):
        z_test(name, (draw() for _ in range(case.draws)), truth)


def _exact_ladj(
    transform: Callable[..., tuple[Tensor, Tensor]], x: Tensor, context: Tensor | None, *, differentiable: bool
) -> Tensor:
    """log|det| of the autograd Jacobian of ``forward``, ``(B,)``."""
    size = math.prod(x.shape[1:])
    point = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    with no_logdet():
        flat = transform(point, context)[0].reshape(len(x), size)
    rows = [
        torch.autograd.grad(flat[:, i].sum(), point, retain_graph=True, create_graph=differentiable)[0].flatten(1)
        for i in range(size)
    ]
    ladj: Tensor = torch.linalg.slogdet(torch.stack(rows, dim=1)).logabsdet
    return ladj
