"""The host: nflows or, where that is missing, the copy of nflows inside glasflow."""

import sys
from typing import Any

try:
    from nflows.distributions import Distribution, StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import (
        CompositeTransform,
        InverseNotAvailable,
        InverseTransform,
        MultiscaleCompositeTransform,
        SqueezeTransform,
        Transform,
    )
except ModuleNotFoundError as missing:
    if str(missing.name).partition(".")[0] != "nflows":  # but what nflows needs
        raise
    try:
        from glasflow.nflows.distributions import Distribution, StandardNormal
        from glasflow.nflows.flows import Flow
        from glasflow.nflows.transforms import (
            CompositeTransform,
            InverseNotAvailable,
            InverseTransform,
            MultiscaleCompositeTransform,
            SqueezeTransform,
            Transform,
        )
    except ModuleNotFoundError as error:
        raise ImportError(
            "flowplug_nflows needs nflows: pip install 'flowplug[nflows]', or glasflow, which has a copy of it: "
            "pip install 'flowplug[glasflow]'"
        ) from error

__all__ = [
    "CompositeTransform",
    "Distribution",
    "Flow",
    "InverseNotAvailable",
    "InverseTransform",
    "MultiscaleCompositeTransform",
    "SqueezeTransform",
    "StandardNormal",
    "Transform",
    "flow_classes",
    "of_either",
]


def of_either(kind: type[Any]) -> tuple[type[Any], ...]:
    """A class of the host and, where both are loaded, the same of glasflow's copy."""
    copy = sys.modules.get(f"glasflow.{kind.__module__}")
    return (kind,) if copy is None else (kind, getattr(copy, kind.__name__))


def flow_classes() -> tuple[type[Any], ...]:
    """What has ``log_prob`` and is no transform: distributions, flows among them, and glasflow's own flows."""
    own = sys.modules.get("glasflow.flows.base")
    return (*of_either(Distribution), *(() if own is None else (own.Flow,)))
