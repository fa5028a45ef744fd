"""Flows on images: density estimation, hybrid models, classification by invertible nets, and memory.

The experiments of Chen et al. (2019), "Residual Flows for Invertible Generative Modeling", and the classification of
Behrmann et al. (2019), "Invertible Residual Networks", at the size of a laptop: scikit-learn's digits by default, which
need no download. Pixels are dequantised anew in each pass; AdamW with warm-up, a cosine schedule and clipped gradients;
Polyak averages of the parameters are validated, the best is tested.

Writes to the output folder results.jsonl (a line a run, with the commit of the code), table.md, summary.md (means over
seeds, and differences from the first model on the same images), rows.jsonl, the means over test images that the summary
is of, what each run says of each test image, and pictures: curves.png, and of each run samples, reconstructions and
interpolations.

    python examples/images.py density --seconds 60
    python examples/images.py density --data mnist.npz --models recommended glow --seeds 0 1 2 --seconds 360 --cpu
    python examples/images.py hybrid --data mnist.npz --weights 1-over-D --seconds 600
    python examples/images.py classify --data mnist.npz --steps 2000
    python examples/images.py memory --event-shape 1 28 28 --scales 3
    torchrun --nproc-per-node 4 examples/images.py density --device cuda --amp
    python examples/images.py density ... --resume     # goes on where a killed run was last saved

A file of images has arrays train, val and test of uint8, (n, H, W) or (n, C, H, W), and train_labels, val_labels and
test_labels.
"""

from collections.abc import Sequence
from typing import Protocol, cast

from common.command import parse
from images.classify import Classify
from images.density import Density
from images.hybrid import Hybrid
from images.memory import Memory


class Subcommand(Protocol):
    """What the options of each can do."""

    def execute(self) -> None:
        """Does it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Does what the command line says."""
    kinds = cast("type[Subcommand]", Density | Hybrid | Classify | Memory)
    parse(kinds, arguments, description=__doc__).execute()


if __name__ == "__main__":
    main()
