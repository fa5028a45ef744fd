"""What is read off a tensor to decide how to go on."""

from torch import Tensor


def known(flag: Tensor) -> bool | None:
    """The truth of a tensor of one entry; None where `torch.func.vmap` hides it, and no one branch can be taken."""
    try:
        return bool(flag)
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return None
