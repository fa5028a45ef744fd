"""Activations that sort."""

from torch import Tensor, nn

from flowplug._arguments import require_ints
from flowplug._errors import ShapeError
from flowplug.branch import LipschitzBound, rule_for


class GroupSort(nn.Module):
    r"""Sorts groups of channels, which keeps every p-norm of a gradient; piecewise linear.

    Its derivative is a permutation, so the log-det of a flow has no second derivative of it to learn from.

    Reference: Anil, Lucas, Grosse, "Sorting out Lipschitz Function Approximation", ICML 2019.

    Args:
        group_size: Number of neighbouring channels that are sorted together, at least 1.

    Raises:
        ValueError: ``group_size`` is below 1.
        ShapeError: The channels do not divide into groups.

    Example:
        >>> GroupSort(3)(torch.tensor([[3.0, 1.0, 2.0, 9.0, 8.0, 7.0]]))
        tensor([[1., 2., 3., 7., 8., 9.]])
    """

    def __init__(self, group_size: int) -> None:
        super().__init__()
        require_ints("GroupSort", group_size=group_size)
        if group_size < 1:
            raise ValueError(f"GroupSort(group_size) must be at least 1; got {group_size}")
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Sorts ``(B, channels, *spatial)`` along the channels."""
        if x.dim() < 2 or x.shape[1] % self.group_size:
            raise ShapeError(
                f"GroupSort({self.group_size}) expects inputs (B, channels, *spatial) whose channels divide into "
                f"groups of {self.group_size}; got {tuple(x.shape)}"
            )
        groups = x.reshape(x.shape[0], x.shape[1] // self.group_size, self.group_size, *x.shape[2:])
        return groups.sort(dim=2).values.reshape(x.shape)

    def extra_repr(self) -> str:
        """The size of a group."""
        return f"{self.group_size}"


class MaxMin(GroupSort):
    """`GroupSort` of pairs: the smaller, then the larger.

    Example:
        >>> MaxMin()(torch.tensor([[3.0, 1.0, 2.0, 9.0]]))
        tensor([[1., 3., 2., 9.]])
    """

    def __init__(self) -> None:
        super().__init__(2)


class FullSort(nn.Module):
    """`GroupSort` of all channels.

    Example:
        >>> FullSort()(torch.tensor([[3.0, 1.0, 2.0, 9.0]]))
        tensor([[1., 2., 3., 9.]])
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Sorts ``(B, channels, *spatial)`` along the channels."""
        return x.sort(dim=1).values


@rule_for(GroupSort, FullSort)
def _(module: nn.Module) -> LipschitzBound:
    return LipschitzBound(1.0)
