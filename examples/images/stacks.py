"""The flows of hybrid models: residual as published and as recommended, and of couplings; where a classifier looks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import normflows as nf

import flowplug as fp
from common.runs import Config
from flowplug_normflows import from_normflows
from images.data import Images
from images.models import Recommended, squeezes

RECOMMENDED = Recommended()
Views = dict[str, fp.Transform | None]  # by the names of parts, what is done to their outputs before a branch


def residual(images: Images, config: Config, hidden: int) -> fp.ComposedTransform:
    """Residual blocks, as in the density."""
    return fp.PublishedImageStack(
        images.event_shape,
        (config["blocks"],) * (1 + squeezes(images, 2)),
        (hidden, hidden),
        dense_transforms=0,
        alpha=config["alpha"],
    )


def recommended(images: Images, config: Config, hidden: int) -> fp.ComposedTransform:
    """The recommended flow."""
    del config
    return RECOMMENDED.stack(images, hidden)


def coupling(images: Images, config: Config, hidden: int, *, mixed: bool = False) -> fp.ComposedTransform:
    """The same with couplings of normflows in place of residual blocks, before which 1x1 convolutions have ``mixed``.

    Masks take turns: of pixels where there is one channel, else of channels.
    """
    channels = images.event_shape[0]
    parts: list[fp.Transform] = [fp.Logit(config["alpha"])]
    for scale in range(1 + squeezes(images, 2)):
        if scale:
            parts.append(fp.Squeeze(2))
            channels *= 4
        parts.append(fp.ActNorm(channels, event_dim=3))
        for number in range(config["blocks"]):
            if mixed and channels > 1:
                parts.append(bridged(nf.flows.Invertible1x1Conv(channels, use_lu=True)))
            parts += [bridged(coupled(channels, hidden, number)), fp.ActNorm(channels, event_dim=3)]
    return fp.ComposedTransform(*parts)


def coupled(channels: int, hidden: int, number: int) -> nf.flows.Flow:
    """An affine coupling, its network the residual block's without a bound."""
    kind = "checkerboard" if channels == 1 else "channel"
    mode = kind if number % 2 == 0 else f"{kind}_inv"
    half = {"channel": (channels + 1) // 2, "channel_inv": channels // 2}.get(mode, channels)
    changed = channels if channels == 1 else channels - half
    network = nf.nets.ConvNet2d([half, hidden, hidden, 2 * changed], (3, 1, 3), init_zeros=True)
    return nf.flows.AffineCouplingBlock(network, scale=True, scale_map="sigmoid", split_mode=mode)


def bridged(flow: nf.flows.Flow) -> fp.Transform:
    """A flow of normflows on images."""
    return from_normflows(flow, event_dim=3)


def behind_squeezes(stack: fp.ComposedTransform, images: Images) -> Views:
    """Branches behind each squeeze and at the end, as published."""
    del images
    last = len(stack.transforms) - 1
    places = [i for i, part in enumerate(stack.transforms) if isinstance(part, fp.Squeeze) or i == last]
    return dict.fromkeys((f"transforms.{place}" for place in places), None)


def behind_patches(stack: fp.ComposedTransform, images: Images) -> Views:
    """A branch behind the last residual transform, before pixels are mixed, squeezed as often as published."""
    places = [
        number
        for number, part in enumerate(stack.transforms)
        if isinstance(part, fp.PatchTransform) and isinstance(part.transform, fp.ResidualTransform)
    ]
    squeezed = [fp.Squeeze(2) for _ in range(max(1, squeezes(images, 2)))]
    return {f"transforms.{places[-1]}": fp.ComposedTransform(*squeezed)}


@dataclass(frozen=True)
class Stack:
    """A flow of images of known sizes, where a classifier looks at it, and how many images it starts from."""

    make: Callable[[Images, Config, int], fp.ComposedTransform]
    views: Callable[[fp.ComposedTransform, Images], Views] = behind_squeezes
    start: int = 500


STACKS = {
    "residual": Stack(residual),
    "recommended": Stack(recommended, behind_patches, RECOMMENDED.start),
    "coupling": Stack(coupling),
    "coupling+1x1": Stack(partial(coupling, mixed=True)),
}
