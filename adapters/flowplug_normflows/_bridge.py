"""normflows' flows as flowplug transforms."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from normflows import ClassCondFlow, MultiscaleFlow, NormalizingFlow
from normflows import flows as nf
from normflows.distributions import BaseDistribution
from torch import Tensor, nn

import flowplug as fp
from flowplug.hosts import HostTransform, Pair, Shape, check_host, context_width, takes_context
from flowplug_normflows._transform import NormflowsFlow

_LISTS = "works on lists of tensors: pass the block that holds it, as AffineCouplingBlock or GlowBlock"
_CHAINS = "draws at random, and is no bijection: leave it in normflows, and bridge the flows before and after it"
_REFUSED: dict[type[nf.Flow], str] = {
    nf.Split: _LISTS,
    nf.AffineCoupling: _LISTS,
    nf.MetropolisHastings: _CHAINS,
    nf.HamiltonianMonteCarlo: _CHAINS,
    nf.BatchNorm: "maps a sample by its whole batch, and has no inverse: use flowplug.ActNorm",
    nf.CCAffineConst: "takes class labels, which are no context: leave it in normflows",
    nf.Residual: "has wrong gradients under weights per sample: use flowplug_normflows.Residual(flow.iresblock.nnet)",
}
_INSTEAD: dict[type, str] = {
    NormalizingFlow: "a flow: pass flow.flows",
    ClassCondFlow: "a flow: pass flow.flows",
    MultiscaleFlow: "a flow of several scales: pass the flows of one of them, flow.flows[i]",
    BaseDistribution: "a distribution: pass the flows in front of it",
}


def from_normflows(
    flow: nf.Flow | Sequence[nf.Flow] | nn.ModuleList,
    *,
    event_dim: int | None = None,
    context_features: int | None = None,
) -> fp.Transform:
    """A normflows flow, or a list of them, as a flowplug transform, and so as one of any other host.

    flowplug's ``forward`` is normflows' ``inverse``, data to latent. A list is in normflows' order, latent to data: of
    a ``NormalizingFlow`` pass its ``flows``. ``Reverse`` and ``Composite`` are taken apart, and so pass contexts on.

    ``ActNorm`` initialises on its first batch in train mode, in whichever direction, as in normflows; unlike there, it
    is the identity until then in eval mode, and does not initialise.

    Args:
        flow: The flows. They are used, not copied: their parameters train with what they become part of.
        event_dim: 1 for vectors, 3 for images ``(C, H, W)``; of a list, at the data. ``None`` for 3 where a ``Squeeze``
            is inside, else for 1.
        context_features: Width of the context; ``None`` reads it off the networks of normflows. Needed with networks
            of your own; 0 for no context. In a list it holds for all flows that take one.

    Raises:
        TypeError: This is no normflows flow, or one that maps no tensors one to one: ``Split``, ``Merge``,
            ``AffineCoupling``, ``MetropolisHastings``, ... The message names what to call or pass.
        ShapeError: There are no flows, or when called: one that is neither ``Squeeze`` nor of flowplug changes the
            shape.
        ContextError: No flow takes a context, or their networks want contexts of different widths.
        InverseNotAvailable: When called, where normflows has no inverse: data to latent for ``Radial`` and ``Planar``.
            For use in the other direction, wrap the bridge in `flowplug.InverseTransform`.

    Example:
        >>> from normflows.flows import CoupledRationalQuadraticSpline, LULinearPermute
        >>> transform = from_normflows([CoupledRationalQuadraticSpline(2, 1, 8), LULinearPermute(2)])
        >>> y, ladj = transform(torch.randn(5, 2))
        >>> y.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    bridged = _bridge(flow, _event_dim_of(flow) if event_dim is None else event_dim, context_features)
    if context_features and not bridged.context_features:
        raise fp.ContextError(f"none of these flows takes a context: pass context_features=0, not {context_features}")
    return bridged


def _event_dim_of(flow: nf.Flow | Sequence[nf.Flow] | nn.ModuleList) -> int:
    parts = flow if isinstance(flow, Sequence | nn.ModuleList) else [flow]
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    return 3 if any(isinstance(module, nf.Squeeze) for module in modules) else 1


def _bridge(flow: nf.Flow | Sequence[nf.Flow] | nn.ModuleList, event_dim: int, width: int | None) -> fp.Transform:
    if isinstance(flow, Sequence | nn.ModuleList):
        parts: list[fp.Transform] = []
        for part in reversed(flow):
            parts.append(_bridge(part, parts[-1].latent_dim if parts else event_dim, width))
        return fp.ComposedTransform(*parts)
    check_host("from_normflows", flow, nf.Flow, _INSTEAD)
    for refused, reason in _REFUSED.items():
        if isinstance(flow, refused):
            raise TypeError(f"{type(flow).__name__} of normflows {reason}")
    if isinstance(flow, NormflowsFlow):
        return flow.core if flow.reverse else fp.InverseTransform(flow.core)
    if isinstance(flow, nf.Reverse):
        return fp.InverseTransform(_bridge(flow.flow, event_dim, width))
    if isinstance(flow, nf.Composite):
        return _bridge(flow._flows, event_dim, width)
    if not takes_context(flow.forward):
        width = 0
    return NormflowsBridge(flow, event_dim=event_dim, context_features=context_width(flow) if width is None else width)


class NormflowsBridge(HostTransform):
    """What `from_normflows` returns for one flow."""

    def _to_latent(self, x: Tensor, context: Tensor | None) -> Pair:
        try:
            with _initialising_in_train_mode_only(self.host):
                return self._call(self.host.inverse, x, context)
        except NotImplementedError as error:
            raise fp.InverseNotAvailable(
                f"{type(self.host).__name__} of normflows maps latent to data only: {error} "
                "Wrap it in flowplug.InverseTransform to use that direction from data to latent"
            ) from error

    def _to_data(self, y: Tensor, context: Tensor | None) -> Pair:
        with _initialising_in_train_mode_only(self.host):
            return self._call(self.host, y, context)

    def _forward_shape(self, event: Shape) -> Shape:
        return fp.Squeeze().forward_shape(event) if isinstance(self.host, nf.Squeeze) else event

    def _inverse_shape(self, latent: Shape) -> Shape:
        return fp.Squeeze().inverse_shape(latent) if isinstance(self.host, nf.Squeeze) else latent


@contextlib.contextmanager
def _initialising_in_train_mode_only(host: nn.Module) -> Iterator[None]:
    waiting = [
        module
        for module in host.modules()
        if isinstance(module, nf.ActNorm) and not module.training and not module.data_dep_init_done
    ]
    before = [module.data_dep_init_done for module in waiting]
    for module in waiting:
        module.data_dep_init_done = torch.ones_like(module.data_dep_init_done)
    try:
        yield
    finally:
        for module, flag in zip(waiting, before, strict=True):
            module.data_dep_init_done = flag
