"""Checks laws in ways of running: one cell of that matrix, or all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from flowplug._arguments import require_ints
from flowplug.testing._case import Case
from flowplug.testing._comparison import ConformanceError
from flowplug.testing._laws import LAWS
from flowplug.testing._ways import WAYS


def check_transform(
    make: Callable[..., nn.Module],
    x: Tensor,
    context: Tensor | None = None,
    *,
    laws: Sequence[str] | None = None,
    ways: Sequence[str] | None = None,
    draws: int = 400,
    seed: int = 0,
    support: tuple[float, float] = (-math.inf, math.inf),
) -> dict[tuple[str, str], str]:
    r"""Checks every law on a transform, in every way of running it.

    The laws are those of `LAWS`, the ways those of `WAYS`; ``laws`` and ``ways`` choose some of them.

    Stochastic log-dets are compared with the log-determinant of the autograd Jacobian by z-tests, value by value and
    gradient entry by gradient entry, with random per-sample weights. The thresholds give a correct transform one false
    alarm in a million; a bias of ``(t + 3) / sqrt(draws)`` standard deviations of one draw, t the threshold (5 to 7),
    is found with probability 0.999. They are checked eagerly; in other ways the numbers, those of gradients too, must
    be the same as eagerly, with the same weights and noise, to the precision that the way promises.

    Args:
        make: Builds a fresh transform, its networks included, and passes keywords on to the constructor, so that a
            misspelt one can be tried.
        x: Inputs ``(B, *event)`` with B >= 2, in the dtype (float64 for sharp tests) and on the device to test.
        context: ``(B, context_features)``, or ``None`` for an unconditional transform.
        laws: Names of the laws to check; all by default.
        ways: Names of the ways to check them in; all by default, ``["eager"]`` for a quick check.
        draws: Number of draws of each z-test.
        seed: Seeds torch's generator for each law; the caller's generator state is restored.
        support: The interval that inputs must lie in, ``(0, 1)`` for a logit: laws try others than ``x``.

    Returns:
        What was left out, ``(law, way)``, and why: a way that this machine lacks, or one that the law or the transform
        has no use for.

    Raises:
        ConformanceError: A law is broken; the message names the law, the way, the deviation and what is allowed.
        ValueError: There is no law or way of a name.

    Example:
        >>> def make(**keywords):
        ...     return ResidualTransform(LipschitzMLP(2, (8, 8)), **keywords)
        >>> left_out = check_transform(make, torch.randn(4, 2, dtype=torch.float64), ways=["eager", "vmap"])
        >>> left_out["shape and dtype", "vmap"]
        'vmap maps over one batch dimension'
    """
    require_ints("check_transform", seed=seed)
    case = Case(make, x, context, draws, support=support)
    left_out: dict[tuple[str, str], str] = {}
    for way in _chosen("way", WAYS, ways):
        for law in _chosen("law", LAWS, laws):
            reason = check_cell(law, way, case, seed=seed)
            if reason is not None:
                left_out[law, way] = reason
    return left_out


def check_cell(law: str, way: str, case: Case, *, seed: int = 0) -> str | None:
    """Checks one law in one way, and returns the reason why not where there is nothing to check.

    Args:
        law: The name of the law.
        way: The name of the way.
        case: The transform and its inputs.
        seed: Seeds torch's generator; the caller's generator state is restored.

    Raises:
        ConformanceError: The law is broken, or the transform raises an error.

    Example:
        >>> case = Case(lambda **keywords: ActNorm(2, **keywords), torch.randn(4, 2))
        >>> check_cell("unknown keywords", "vmap", case)
        'it is about how a transform is made, not how it is run'
    """
    devices = [case.x.device] if case.x.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        reason = _left_out(law, way, case)
        if reason is not None:
            return reason
        torch.manual_seed(seed)
        try:
            with WAYS[way].around():
                LAWS[law](case.within(WAYS[way]))
        except ConformanceError as error:
            raise ConformanceError(f"law '{law}', {way}: {error}") from None
        except WAYS[way].refuses as error:
            return f"refused by {type(error).__name__}: {error}"
        except Exception as error:
            raise ConformanceError(f"law '{law}', {way}: {type(error).__name__}: {error}") from error
    return None


def _left_out(law: str, way: str, case: Case) -> str | None:
    reason = LAWS[law].left_out_of(WAYS[way])
    if reason is not None:
        return reason
    applies = LAWS[law].applies
    if applies is not None and not applies[0](case):
        return applies[1]
    return WAYS[way].unavailable(case)


def _chosen(kind: str, table: Mapping[str, object], names: Sequence[str] | None) -> Sequence[str]:
    unknown = [name for name in names or () if name not in table]
    if unknown:
        raise ValueError(f"there is no {kind} {unknown[0]!r}; the {kind}s are {', '.join(table)}")
    return list(table) if names is None else names
