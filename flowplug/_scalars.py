"""Trainable numbers."""

from typing import Any, ClassVar

from torch import nn


class OneNumber(nn.Module):
    """What a module with one trainable number inherits: a tensor ``(1,)``, as FSDP shards no scalars.

    State dicts of version 0.2 and those before it, which hold a scalar, load.
    """

    number: ClassVar[str]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401 -- torch's
        name = prefix + self.number
        if name in state_dict and state_dict[name].dim() == 0:
            state_dict[name] = state_dict[name].reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)
