"""Copies and averages of a transform, and one whose dtype was changed in between."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from flowplug.testing._case import Case, meet


def deepcopied(case: Case, transform: nn.Module) -> nn.Module:
    _serve(case, transform)
    return copy.deepcopy(transform)


def pickled(case: Case, transform: nn.Module) -> nn.Module:
    _serve(case, transform)
    buffer = io.BytesIO()
    torch.save(transform, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


def averaged(case: Case, transform: nn.Module, *, use_buffers: bool) -> nn.Module:
    """An average of three transforms, each with its own weights and its own start from data."""
    halve = get_ema_multi_avg_fn(0.5)  # type: ignore[no-untyped-call]
    average = AveragedModel(_near(case, transform, -0.3), multi_avg_fn=halve, use_buffers=use_buffers)
    average.n_averaged.fill_(1)  # the first update would replace what it holds
    for model in (transform, _near(case, transform, 0.5)):
        average.update_parameters(model)
        _serve(case, average.module)
    return average.module


@torch.no_grad()
def _near(case: Case, transform: nn.Module, share: float) -> Any:  # noqa: ANN401
    """A transform with weights close to given ones, as far ones may have a singular mean, and started elsewhere."""
    near, other = case.fresh(), case.fresh()
    # Permutations, seeds, initial weights: what is random is taken over, and the start is not.
    drawn = [name for name, value in near.state_dict().items() if not torch.equal(value, other.state_dict()[name])]
    meet(near, case.inside(case.x + share * case.x.flip(0)), case.context)
    near.load_state_dict({**near.state_dict(), **{name: transform.state_dict()[name] for name in drawn}})
    for parameter in near.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return near


def there_and_back(case: Case, transform: nn.Module) -> nn.Module:
    """Served in the other precision in between."""
    other = torch.float32 if case.x.dtype == torch.float64 else torch.float64
    _serve(case, transform)
    context = None if case.context is None else case.context.to(other)
    _serve(dataclasses.replace(case, x=case.x.to(other), context=context), transform.to(other))
    return transform.to(case.x.dtype)


def _serve(case: Case, transform: Any) -> None:  # noqa: ANN401
    """Values before a change, which must leave no trace in those after it."""
    mode = transform.training
    with torch.no_grad():
        for training in (True, False):
            transform.train(training)
            transform(case.x, case.context)
            transform.inverse(case.y, case.context)
    transform.train(mode)
