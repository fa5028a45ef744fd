"""Cells of the matrix that fail today, by the fault that is being mended: patterns "transform / law / way"."""

KNOWN: dict[str, tuple[str, ...]] = {
    "a transform of zuko that is bound inside a checkpoint draws another seed when the pass is repeated": (
        "zuko stochastic / fixed noise / checkpointed",
    ),
}
