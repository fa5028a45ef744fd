"""The convolutional network that serves as residual branch for images, with context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from flowplug._arguments import require_bools, require_instance, require_ints, require_sizes
from flowplug._errors import ShapeError
from flowplug._precision import in_dtype
from flowplug.branch import LipschitzBound, bound_in, compose_bounds
from flowplug.lipschitz.activations import Activation, Sine, linearize
from flowplug.lipschitz.layers import conv_layer
from flowplug.lipschitz.networks._chain import ChainBranch, knows_slope
from flowplug.lipschitz.networks._checks import check_sizes, make_activation, norms_of
from flowplug.lipschitz.networks._conv_chain import ConvChain, channels_last
from flowplug.lipschitz.networks._network import Affine, LipschitzNetwork
from flowplug.lipschitz.norms import Gram, NetworkNorm, OperatorNorm


class LipschitzCNN(LipschitzNetwork):
    r"""A convolutional network ``g(x, c)`` for images of any size, with a Lipschitz constant in x of at most ``bound``.

    .. math:: h_0 = x, \quad h_l = \phi_l(\hat W_l * h_{l-1} + b_l + V_l c), \quad g = \hat W_n * h_{n-1} + b_n + V_n c

    with :math:`|\hat W_l *| \le` ``bound ** (1 / n)`` and 1-Lipschitz :math:`\phi_l`. The context shifts all pixels of
    a channel alike, without a constraint. With element-wise activations products with the Jacobian walk no graph.

    On a GPU, torch rounds the factors in convolutions of float32 to 10 bits, unless ``torch.backends.cudnn.allow_tf32 =
    False``. Inverses and bounds are exact either way, but a round trip is no more exact than its way forth.

    Args:
        channels: Number of channels of the images.
        hidden_channels: Numbers of channels of the hidden layers.
        kernel_sizes: Sizes of the n kernels. ``None``: 3 for the first and the last layer, 1 between, as published.
        context_features: Width of the context, 0 for none.
        bound: Upper bound on the Lipschitz constant of the whole network, in (0, 1).
        norm: The norm the bound holds in, that of all pixels of all channels: any of `LipschitzConv2d`, or
            `PathNorm` for the network as a whole.
        activation: Makes one activation per hidden layer, as in `LipschitzMLP`.
        padding_mode: ``"zeros"`` or ``"circular"``.
        preactivation: Whether the network starts with an activation, :math:`h_0 = \phi_0(x)`, as published.
        zero_last: Whether the last layer starts at zero, so that ``x + g(x)`` starts as the identity.

    Raises:
        LipschitzError: ``bound`` is not in (0, 1), an activation has no known bound or one above 1, or the norm is not
            one for convolutions.
        ShapeError: A size is not positive, there is not one kernel size per layer, or an input has another shape.
        ContextError: The context is missing or has the wrong width.

    Reference: Chen, Behrmann, Duvenaud, Jacobsen, "Residual Flows for Invertible Generative Modeling", NeurIPS 2019,
    appendix E.

    Example:
        >>> transform = ResidualTransform(LipschitzCNN(3, (16, 16)))
        >>> transform(torch.randn(5, 3, 8, 8))[1].shape
        torch.Size([5])
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: Sequence[int] = (64, 64),
        *,
        kernel_sizes: Sequence[int] | None = None,
        context_features: int = 0,
        bound: float = 0.97,
        norm: OperatorNorm | NetworkNorm | Sequence[OperatorNorm] = Gram(),  # noqa: B008 -- frozen and stateless
        activation: Callable[[], nn.Module] = Sine,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        preactivation: bool = False,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        require_ints(name, channels=channels)
        require_sizes(name, hidden_channels=hidden_channels)
        require_instance(name, "padding_mode", padding_mode, str, "'zeros'")
        require_bools(name, preactivation=preactivation)
        count = len(hidden_channels) + 1
        kernels = [3 if i in (0, count - 1) else 1 for i in range(count)] if kernel_sizes is None else kernel_sizes
        require_sizes(name, kernel_sizes=kernels)
        check_sizes(
            name,
            bound,
            context_features,
            zero_last=zero_last,
            channels=channels,
            hidden_channels=hidden_channels,
            kernel_sizes=kernels,
        )
        if len(kernels) != count:
            raise ShapeError(f"{name} has {count} layers and needs as many kernel_sizes; got {len(kernels)}")
        self.event_shape = (channels, None, None)
        norms = norms_of(name, norm, count)
        share = bound ** (1 / count)
        self.circular, layers, activations, width = padding_mode == "circular", [], [], channels
        self.entry: nn.Module | None = None
        if preactivation:
            self.entry, width = make_activation(activation, norms[0], channels, spatial=2)
        for hidden, kernel, inner in zip([*hidden_channels, channels], kernels, norms, strict=True):
            layers.append(conv_layer(width, hidden, kernel, share, inner, padding_mode))
            if len(layers) < count:
                module, width = make_activation(activation, inner, hidden, spatial=2)
                activations.append(module)
        self._finish(layers, activations, context_features=context_features, bound=bound, norm=norm, zero=zero_last)

    def _branch(self, context: Tensor | None, weights: Sequence[Tensor], shifts: Sequence[Tensor]) -> CNNBranch:
        return CNNBranch(self, context, weights, shifts)

    def evaluate(self, x: Tensor, affine: Affine) -> Tensor:
        """The network on rows ``(B, channels, H, W)``, where ``affine(i, h)`` is layer i."""
        entered = x if self.entry is None else self.entry(x.clone())  # some write on their input
        return super().evaluate(entered, affine)

    def certify(self, weights: Sequence[Tensor]) -> LipschitzBound:
        """The Lipschitz bound of the network with these weights in use."""
        bound = super().certify(weights)
        if self.entry is None:
            return bound
        return compose_bounds(type(self).__name__, bound_in(self.entry, bound.domain), bound)


class CNNBranch(ChainBranch):
    """A `LipschitzCNN` for one pass, with products in closed form."""

    trace_pays: ClassVar[bool] = False

    def __init__(
        self, g: LipschitzNetwork, context: Tensor | None, weights: Sequence[Tensor], shifts: Sequence[Tensor]
    ) -> None:
        super().__init__(g, context, list(map(channels_last, weights)), shifts)

    def _chain(self, x: Tensor) -> ConvChain | None:
        network = cast(LipschitzCNN, self._network)
        hidden, slope = _entry(network.entry, x)
        parts = None if hidden is None else self._parts(hidden)
        if parts is None:
            return None
        y = in_dtype(parts.y.contiguous(), x.dtype)
        return ConvChain(y, parts.weights, parts.slopes, slope, circular=network.circular)

    def _entered(self, x: Tensor) -> Tensor:
        """The image, or what the activation at the entry makes of it."""
        entry = cast(LipschitzCNN, self._network).entry
        hidden, _ = _entry(entry, x)
        return cast(nn.Module, entry)(x.clone()) if hidden is None else hidden  # some write on their input


def _entry(activation: nn.Module | None, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What the first layer sees, and the slope of the activation before it; ``None`` where that is not known."""
    if activation is None:
        return x, None
    if not knows_slope(activation):
        return None, None
    frequency = activation.frequency(x.shape[1]) if isinstance(activation, Activation) else None
    if frequency is None:
        return linearize(activation, x)
    frequency = frequency.reshape(-1, 1, 1)
    value, slope = linearize(activation, frequency * x)
    return value / frequency, slope
