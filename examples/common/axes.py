"""Axes of pictures."""

from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, NullFormatter


def label_counts(axis: Axis) -> None:
    """Labels a logarithmic axis 1, 2, 5, 10 and so on, where those of 2, 3, 4 and 6 times a power of 10 would overlap.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> limits = axes.set(xscale="log", xlim=(1.5, 30))
        >>> label_counts(axes.xaxis)
        >>> [label.get_text() for label in axes.get_xticklabels()]  # those beyond the limits are not drawn
        ['1', '2', '5', '10', '20', '50']
    """
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
