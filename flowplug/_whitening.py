"""Decorrelation with data-dependent initialisation."""

import torch
from torch import Tensor

from flowplug._arguments import require_ints
from flowplug._errors import ShapeError
from flowplug._transform import Transform


class Whitening(Transform):
    r"""An affine map, without parameters, that decorrelates and standardises the first batch it sees.

    .. math:: y = (\lambda \bar\sigma^2 I + (1 - \lambda) \Sigma)^{-1/2} (x - \mu), \qquad
        \mathrm{ladj} = \log |\det \partial y / \partial x|

    with the mean and covariance of the first batch met by `forward` in train mode, and :math:`\bar\sigma^2` the mean
    variance. The statistics are kept in buffers, as `ActNorm` keeps its own (saved, loaded, and broadcast by DDP). The
    shrinkage :math:`\lambda` is the oracle-approximating one: near 0 for batches of many rows, near 1 where rows are
    too few to tell directions apart. Before that batch the map is the identity; it stays so in a flow whose training
    starts with `inverse`, as for a reverse KL divergence. Put a `DenseTransform` behind it to train the map: from this
    start, and on scales of 1, it learns sooner.

    Reference: Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Transactions on
    Signal Processing 58, 2010, eq. (23), without its terms in 2 / D, as in scikit-learn.

    Args:
        features: Width D of the events.

    Raises:
        ShapeError: ``features`` is below 1, or an input has another width.

    Example:
        >>> whitening = Whitening(2)
        >>> y, ladj = whitening(5 + torch.randn(1000, 2) * torch.tensor([1.0, 3.0]))
        >>> bool((y.T @ y / 1000 - torch.eye(2)).abs().max() < 0.05)
        True
    """

    event_dim = 1
    mean: Tensor
    weight: Tensor
    inverse_weight: Tensor
    log_det: Tensor
    initialized: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        require_ints("Whitening", features=features)
        if features < 1:
            raise ShapeError(f"Whitening needs at least 1 feature; got {features}")
        self.event_shape = (features,)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("weight", torch.eye(features))
        self.register_buffer("inverse_weight", torch.eye(features))
        self.register_buffer("log_det", torch.zeros(()))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        if self.training and x.numel() and not self.initialized:
            self._initialize(x.detach().reshape(-1, x.shape[-1]))
        # Hosts add to log-dets in place: every sample gets an entry of its own.
        return (x - self.mean) @ self.weight, self.log_det.expand(x.shape[:-1]).clone()

    def _inverse(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        del context
        if self.training and torch.is_grad_enabled():
            # A later forward must not change the map that this graph differentiates.
            self.initialized.fill_(1)
        return y @ self.inverse_weight + self.mean, (-self.log_det).expand(y.shape[:-1]).clone()

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        self.mean.copy_(x.mean(0))
        variances, directions = torch.linalg.eigh((x - self.mean).T @ (x - self.mean) / len(x))
        level = variances.mean()
        # Rows that are all equal but for rounding are centred and left at their scale.
        if level > (torch.finfo(x.dtype).eps * x.abs().amax()) ** 2:
            shrinkage = _shrinkage(variances.clamp(min=0), len(x))
            scales = (shrinkage * level + (1 - shrinkage) * variances.clamp(min=0)).sqrt()
            self.weight.copy_(directions / scales @ directions.T)
            self.inverse_weight.copy_(directions * scales @ directions.T)
            self.log_det.copy_(-scales.log().sum())
        self.initialized.fill_(1)


def _shrinkage(variances: Tensor, rows: int) -> Tensor:
    """The share of the mean variance, from the variances along the principal directions."""
    squares, square = variances.square().sum(), variances.sum().square()
    unlike = (squares - square / len(variances)).clamp(min=0)  # 0 but for rounding where all are equal: a share of 1
    return ((squares + square) / ((rows + 1) * unlike)).clamp(max=1)
