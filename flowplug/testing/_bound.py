"""Laws of the certificate: the stated bound covers the Jacobian of what is really computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from flowplug._errors import LipschitzError
from flowplug._residual import ResidualTransform
from flowplug.branch import Branch, LipschitzBound
from flowplug.lipschitz import InducedNorm
from flowplug.testing._case import Case, directions, jacobian
from flowplug.testing._comparison import require


def has_a_bound(case: Case) -> bool:
    """Whether there is a residual transform inside."""
    return any(isinstance(module, ResidualTransform) for module in case.fresh().modules())


def respects_its_bound(case: Case) -> None:
    """After 200 Adam steps that enlarge the Jacobian of g, without a manual call, it is within the stated bound."""
    transform = case.build(training=True)
    for residual, x, context in _residuals(case, transform):
        optimizer = torch.optim.Adam(residual.g.parameters(), lr=0.05)
        for _ in range(200):
            matrix = Branch.of(residual.g, context).jacobian(x)[1]
            optimizer.zero_grad()
            torch.autograd.backward(-matrix.square().sum())
            optimizer.step()
        _require_within(residual.lipschitz, Branch.of(residual.g, context).jacobian(x)[1].detach(), "training")


def covers_what_it_computes(case: Case) -> None:
    """What bypasses the forward of a part of g is honoured, within the bound, or refused by `LipschitzError`.

    A forward hook on a layer, on a container or on g, an instance's own ``forward``, torch's old ``weight_norm`` and
    ``prune`` on a layer: each is called, and what it changes is in the certificate, or it is refused.
    """
    for name, tamper in _TAMPERS.items():
        for index in range(len(_residuals(case, case.start()))):
            for part in range(3):
                _check_tampered(case, name, tamper, index, part)


def _check_tampered(case: Case, name: str, tamper: Tamper, index: int, part: int) -> None:
    transform = case.build(training=True)
    residual, x, context = _residuals(case, transform)[index]
    target = _parts(residual.g)[part]
    if target is None:
        return
    where = f"{name} on {type(target).__name__}"
    try:
        notice = tamper(target)
        if notice is None:  # no such weight here
            return
        before = residual(x, context)[0].detach()
        lipschitz = residual.lipschitz
        matrix = jacobian(residual, x, context, differentiable=False)
        _require_within(lipschitz, matrix - torch.eye(matrix.shape[-1]).to(matrix), where)
        noticed = notice()
        after = residual(x, context)[0].detach()
    except LipschitzError:
        return
    require(noticed or not torch.equal(before, after), f"{where} is ignored")


def _parts(g: nn.Module) -> list[Any]:
    """A layer with weights, a module that holds it, and g."""
    layer = next((m for m in g.modules() if any(True for _ in m.parameters(recurse=False))), None)
    holder = next((m for m in g.modules() if m is not g and layer in list(m.children())), None)
    return [layer, holder, g if g is not layer else None]


# Changes a module; returns a function that says whether the change was seen, or does what the output must show.
Tamper = Callable[[nn.Module], "Callable[[], bool] | None"]


def _hook(module: nn.Module) -> Callable[[], bool]:
    calls: list[int] = []

    def triple(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ANN401
        calls.append(1)
        return 3 * output

    module.register_forward_hook(triple)
    return lambda: bool(calls)


def _pre_hook(module: nn.Module) -> Callable[[], bool]:
    calls: list[int] = []

    def triple(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        calls.append(1)
        return (3 * inputs[0], *inputs[1:])

    module.register_forward_pre_hook(triple)
    return lambda: bool(calls)


def _own_forward(module: nn.Module) -> Callable[[], bool]:
    calls: list[int] = []
    original = module.forward

    def forward(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401
        calls.append(1)
        return 3 * original(*args, **keywords)

    module.forward = forward
    return lambda: bool(calls)


def _weight_norm(module: nn.Module) -> Callable[[], bool] | None:
    if not isinstance(module._parameters.get("weight"), nn.Parameter) or module.weight.dim() < 2:  # type: ignore[operator]
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module)

    def shrink() -> bool:
        with torch.no_grad():
            module.weight_g.mul_(0.01)  # type: ignore[operator]
        return False

    return shrink


def _prune(module: nn.Module) -> Callable[[], bool] | None:
    if not isinstance(module._parameters.get("weight"), nn.Parameter):
        return None
    prune.l1_unstructured(module, "weight", amount=1)  # type: ignore[no-untyped-call]

    def shrink() -> bool:
        with torch.no_grad():
            module.weight_orig.mul_(0.01)  # type: ignore[operator]
        return False

    return shrink


_TAMPERS: dict[str, Tamper] = {
    "a forward hook": _hook,
    "a forward pre-hook": _pre_hook,
    "an own forward": _own_forward,
    "weight_norm": _weight_norm,
    "prune": _prune,
}


Met = tuple[ResidualTransform, Tensor, "Tensor | None"]


def _residuals(case: Case, transform: Any) -> list[Met]:  # noqa: ANN401 -- a host's module
    """The residual transforms inside, with the rows that each meets in its forward pass, and their contexts."""
    met: dict[ResidualTransform, Met] = {}

    def meet(module: nn.Module, inputs: tuple[Tensor | None, ...]) -> None:
        residual, (x, context) = cast(ResidualTransform, module), (*inputs, None)[:2]
        x = cast(Tensor, x).detach().flatten(0, -1 - residual.event_dim)
        told = bool(residual.context_features) and context is not None
        context = cast(Tensor, context).detach().reshape(len(x), -1) if told else None
        met.setdefault(residual, (residual, x, context))

    parts = [module for module in transform.modules() if isinstance(module, ResidualTransform)]
    handles = [part.register_forward_pre_hook(meet) for part in parts]
    with torch.no_grad():
        for _, direction, x, _ in directions(case, transform):
            direction(x, case.context)
    for handle in handles:
        handle.remove()
    return [met[part] for part in parts]


def _require_within(lipschitz: LipschitzBound, matrices: Tensor, after: str) -> None:
    order = 2.0 if lipschitz.domain is None else lipschitz.domain
    # From below where the norm has no closed form.
    largest = max(float(InducedNorm(order, order).estimate(matrix)) for matrix in matrices.flatten(2))
    require(largest <= float(lipschitz) * 1.00001, f"after {after} a Jacobian of norm {largest} exceeds {lipschitz}")
