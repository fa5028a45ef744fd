"""Every error and warning of flowplug; each also derives from the built-in a caller would expect."""


class FlowplugError(Exception):
    """Base class of all errors raised by flowplug."""


class ShapeError(FlowplugError, ValueError):
    """A tensor's shape does not fit the transform."""


class DtypeError(FlowplugError, TypeError):
    """A tensor's dtype is not floating point, or differs from that of the transform's parameters."""


class DeviceError(FlowplugError, ValueError):
    """A tensor lies on another device than the transform's parameters."""


class NonFiniteError(FlowplugError, ValueError):
    """A tensor holds NaN or infinity."""


class DomainError(FlowplugError, ValueError):
    """A tensor holds a number that a map is not defined for."""


class ContextError(FlowplugError, ValueError):
    """The context is missing, or its shape, dtype or device does not fit."""


class LipschitzError(FlowplugError, ValueError):
    """A Lipschitz bound is unknown, or too large for the residual map to be invertible."""


class NotConverged(FlowplugError, RuntimeError):
    """A solver reached its step limit, or diverged, before every sample met its tolerance."""


class InverseNotAvailable(FlowplugError, NotImplementedError):
    """The transform has no inverse."""


class SingularMatrixError(FlowplugError, ValueError):
    """A matrix that has to be inverted is singular to working precision."""


class SecondDerivativeError(FlowplugError, RuntimeError):
    """A derivative was asked for that is only available to first order."""


class VmapError(FlowplugError, RuntimeError):
    """Something whose steps depend on the values of its rows was called inside `torch.func.vmap`."""


class CaptureError(FlowplugError, RuntimeError):
    """A CUDA graph or an exported program was to record what it cannot: what is drawn anew for every pass, or MAGMA."""


class UnboundedBranchWarning(UserWarning):
    """Training may carry the Lipschitz bound of a residual branch to 1, from where on the map may not be invertible."""


class InfiniteVarianceWarning(UserWarning):
    """A log-det estimate may have infinite variance: its mean is right, but no average of draws settles."""


class StartWarning(UserWarning):
    """A transform that starts from data has met too few rows, or has lost its chance to start."""
