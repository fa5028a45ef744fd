"""Cells of the matrix that fail today, by the fault that is being mended: patterns "transform / law / way"."""

KNOWN: dict[str, tuple[str, ...]] = {
    "gradients of bounded weights at D = 1 in half precision: the largest of a norm changes, or a fault": (
        "* d=1 / same numbers / autocast",
    ),
    "a transform of zuko that is bound inside a checkpoint draws another seed when the pass is repeated": (
        "zuko stochastic / fixed noise / checkpointed",
    ),
}
