"""What several benchmarks and tutorials train, take apart and count."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

import flowplug as fp
from common.densities import Density, normflows_density, of_transform
from common.layers import residual_block
from common.training import Options, rows_of
from common.trial import fit

Loss = Callable[[Tensor], Tensor]


class Counting(nn.Module):
    """g, and how many samples it was evaluated on."""

    def __init__(self, g: nn.Module) -> None:
        super().__init__()
        self.g, self.samples = g, 0

    def forward(self, x: Tensor) -> Tensor:
        """``g(x)``."""
        self.samples += len(x)
        y: Tensor = self.g(x)
        return y


@fp.lipschitz_bound.register
def _(module: Counting) -> fp.LipschitzBound:
    return fp.lipschitz_bound(module.g)


def inverted(g: nn.Module, solver: fp.FixedPoint | fp.Anderson, y: Tensor) -> tuple[Tensor, float]:
    """The solution of ``x + g(x) = y``, and the evaluations of g a row it took."""
    counting = Counting(g)
    with torch.no_grad(), fp.no_logdet():
        x = fp.ResidualTransform(counting, solver=solver).eval().inverse(y)[0]
    return x, counting.samples / len(y)


def trained_stack(rows: Tensor, transforms: int, steps: int) -> fp.ResidualStack:
    """A stack at its defaults, trained on a table ``(rows, features)``; in eval mode."""
    flow = fp.ResidualStack(rows.shape[1], transforms).to(rows.dtype)
    fit(of_transform(flow, rows.shape[1]), rows_of(rows), Options(steps=steps))
    return flow.eval()


@torch.no_grad()
def residual_parts(flow: fp.ComposedTransform, x: Tensor) -> Iterator[tuple[fp.ResidualTransform, Tensor]]:
    """The residual transforms of a flow, each with what reaches it of ``x: (B, D)``."""
    for part in flow.transforms:
        if isinstance(part, fp.ResidualTransform):
            yield part, x
        x = part(x)[0]


@torch.no_grad()
def jacobians(transform: fp.ResidualTransform, x: Tensor) -> Tensor:
    """Those of g ``(B, D, D)`` at ``x: (B, D)``."""
    return fp.Branch.of(transform.g, None).jacobian(x)[1].contiguous()


def normflows_residual(features: int, hidden: tuple[int, ...], blocks: int) -> Density:
    """The residual flow of normflows as its documentation builds it, ActNorm between."""
    widths = [features, *hidden, features]
    return normflows_density(features, [layer for _ in range(blocks) for layer in residual_block(widths)])


def likelihood_loss(transforms: Sequence[Callable[..., tuple[Tensor, Tensor]]], x: Tensor) -> Tensor:
    """The negative log-likelihood of residual transforms in a row, up to a constant."""
    total = x.new_zeros(len(x))
    for transform in transforms:
        x, ladj = transform(x)
        total = total + ladj
    return (x.square().flatten(1).sum(1) / 2 - total).mean()


def loss_of(transforms: Sequence[Callable[..., tuple[Tensor, Tensor]]]) -> Loss:
    """The `likelihood_loss` as a function of the batch; torch.compile takes no partial one."""
    return lambda x: likelihood_loss(transforms, x)
