"""What every subcommand that trains can be told."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from common.command import positive
from common.options import RunOptions
from common.runs import Config
from images.data import EMBEDDED, Images


@dataclass(frozen=True)
class ImageOptions(RunOptions):
    """The common part of the command line; comments are its help."""

    SECONDS: ClassVar[float] = 60.0

    data: str = EMBEDDED  # .npz file of uint8 images and labels, or digits, which need none
    parameters: int = 50_000  # of each model, about
    batch: int = 64  # images per step, of all processes
    lr: float = 2e-3  # largest learning rate
    weight_decay: float = 1e-4  # of AdamW
    clip: float = 1e3  # largest norm of the gradient
    checks: int = 10  # validations in a run
    patience: int = 10  # validations without progress that end a run
    blocks: int = 2  # at each scale, of published flows and of nets that classify
    alpha: float | None = None  # of logits; as published: 1e-5 for grey images, 0.05 for colours
    flips: bool | None = None  # train on mirror images too; by default where images have colours
    val: int = 500  # images to validate on, at most
    test: int = 1000  # images to test on, at most
    out: Path = Path("images_out")  # folder written to

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "alpha", "blocks", "val", "test")

    def common(self, images: Images, processes: int) -> Config:
        """What the configurations of all runs on these images have in common."""
        alpha = self.alpha if self.alpha is not None else 0.05 if images.coloured else 1e-5
        flips = self.flips if self.flips is not None else images.coloured
        own = {"blocks": self.blocks, "alpha": alpha, "flips": flips, "val": self.val, "test": self.test}
        return {"data": images.name, **self.shared(processes), **own}


@dataclass(frozen=True)
class ClassifierOptions(ImageOptions):
    """What subcommands that classify can be told besides."""

    features: int = 32  # channels of each branch to the classifier; published with 256
    pool: int = 4  # means a side of each of these, which tell where in the image; published with 1

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "features", "pool")

    def common(self, images: Images, processes: int) -> Config:
        """As of all, and these."""
        return super().common(images, processes) | {"features": self.features, "pool": self.pool}
