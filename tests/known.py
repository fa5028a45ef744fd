"""Cells of the matrix that fail today, by the fault that is being mended: patterns "transform / law / way"."""

KNOWN: dict[str, tuple[str, ...]] = {}
