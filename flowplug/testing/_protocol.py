"""Laws of the protocol: shapes, dtypes, inputs of any layout and size, saving, keywords."""

import copy
import io
import math

import torch
from torch import Tensor, nn

from flowplug._errors import FlowplugError
from flowplug._transform import Transform
from flowplug.testing._case import Case, Direction, directions, inner, leaves
from flowplug.testing._comparison import ConformanceError, require, require_close


def keeps_shape_and_dtype(case: Case) -> None:
    """Outputs have the batch shape, dtype and device of the input, ladjs the batch shape, for any batch dimensions.

    Their events have the shape of the input, or that of ``forward_shape`` and ``inverse_shape``.
    """
    count = len(case.x)
    for dtype in (torch.float32, torch.float64):
        transform = case.build(training=True).to(dtype)
        _require_shapes(case, inner(transform))
        for batch in ((count,), (1, count), (), (0,)):
            size = math.prod(batch)
            context = case.context
            if context is not None:
                context = context[:size].to(dtype).reshape(*batch, context.shape[-1])
            for _, direction, inputs, like in directions(case, transform):
                x = inputs[:size].to(dtype).reshape(*batch, *inputs.shape[1:])
                shapes = ((*batch, *like.shape[1:]), batch)
                for tensor, shape in zip(direction(x, context), shapes, strict=True):
                    got, wanted = (tensor.shape, tensor.dtype, tensor.device), (torch.Size(shape), dtype, x.device)
                    require(got == wanted, f"expected {wanted}, got {got}")


def _require_shapes(case: Case, transform: nn.Module) -> None:
    event, latent = tuple(case.x.shape[1:]), tuple(case.y.shape[1:])
    if isinstance(transform, Transform):
        said = (
            transform.event_dim,
            transform.latent_dim,
            transform.forward_shape(event),
            transform.inverse_shape(latent),
        )
        found = (len(event), len(latent), latent, event)
        require(said == found, f"event_dim, latent_dim, forward_shape and inverse_shape say {said}; they are {found}")


def leaves_inputs_alone(case: Case) -> None:
    """The caller's tensors are neither changed nor marked, in any grad mode, and every ladj has memory of its own."""
    transform = case.build(training=True)
    inputs = [case.x, case.y] if case.context is None else [case.x, case.y, case.context]
    before = [tensor.clone() for tensor in inputs]
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for _, direction, x, _ in directions(case, transform):
            with mode():
                output, ladj = direction(x, case.context)
            require(all(map(torch.equal, inputs, before)), "an input was changed")
            require(not any(tensor.requires_grad for tensor in inputs), "an input was marked requires_grad")
            if mode is torch.enable_grad and not torch.is_inference_mode_enabled():
                with torch.no_grad():
                    others = ladj[1:].clone()
                    ladj[0] += 1
                    require(torch.equal(ladj[1:], others), "log-dets share memory")
                    ladj += 1
                loss = output.sum() + ladj.sum()
                if loss.requires_grad:  # a transform without parameters has no graph here
                    torch.autograd.backward(loss)
            else:
                require(not (output.requires_grad or ladj.requires_grad), f"a graph was built under {mode.__name__}")


def takes_any_layout(case: Case) -> None:
    """No rows, several batch dimensions, strides and expanded rows give what copies of the same numbers give."""
    transform = case.build(training=False)
    for way, direction, x, like in directions(case, transform):
        _require_any_layout(way, direction, x, like, case.context)
    if torch.is_inference_mode_enabled():
        return
    for training in (True, False):
        transform.train(training)
        for way, direction, x, like in directions(case, transform):
            point, by = leaves(case, x)
            output, ladj = direction(point[:0], None if by is None else by[:0])
            good = output.shape == like[:0].shape and ladj.shape == (0,)
            require(good, f"{way} of no rows: got {tuple(output.shape)}")
            loss = output.sum() + ladj.sum()
            if loss.requires_grad:
                torch.autograd.backward(loss)
            require(point.grad is None or not point.grad.any(), f"{way} of no rows has a gradient")


def _require_any_layout(way: str, direction: Direction, x: Tensor, like: Tensor, context: Tensor | None) -> None:
    inputs = {
        "strided inputs": (_strided(x), None if context is None else _strided(context)),
        "transposed inputs": (x.movedim(0, -1).contiguous().movedim(-1, 0), context),
        "two batch dimensions": (x[:, None], None if context is None else context[:, None]),
        "expanded inputs": (x[:1].expand(x.shape), None if context is None else context[:1].expand(context.shape)),
    }
    for name, (given, by) in inputs.items():
        batch = given.shape[: given.dim() - x.dim() + 1]
        plain = given.reshape(x.shape).clone(memory_format=torch.contiguous_format)
        plain_context = None if by is None else by.reshape(len(x), -1).clone(memory_format=torch.contiguous_format)
        with torch.no_grad():
            got, wanted = direction(given, by), direction(plain, plain_context)
        require_close(f"{way} with {name}", got[0], wanted[0].reshape(*batch, *like.shape[1:]))
        require_close(f"ladj of {way} with {name}", got[1], wanted[1].reshape(batch))


def takes_any_scale(case: Case) -> None:
    """Inputs of scales from 1e-30 to 1e30 come back from the round trip with finite log-dets, or are refused by name.

    An error of flowplug is a refusal; one of torch, NaN and infinity are none.
    """
    transform = case.build(training=False)
    for scale in (1e-30, 1e-12, 1e-6, 1e6, 1e12, 1e30):
        x = scale * case.x
        with torch.no_grad():
            try:
                y, ladj = transform(x, case.context)
                back, inverse_ladj = transform.inverse(y, case.context)
            except FlowplugError:
                continue
        finite = all(bool(part.isfinite().all()) for part in (y, ladj, back, inverse_ladj))
        require(finite, f"inputs of scale {scale:g} give NaN or infinity")
        # Rounding is relative to the largest number on the way, which for small inputs is a shift.
        size = max(1.0, float(x.abs().max()), float(y.abs().max()))
        require_close(f"round trip at scale {scale:g}", back / size, x / size)


def saves_and_copies(case: Case) -> None:
    """A strict state_dict round trip into a fresh module, deepcopy and pickling keep the outputs; repr works."""
    transform = case.build(training=False)
    fresh = case.fresh().eval()
    fresh.load_state_dict(transform.state_dict())
    buffer = io.BytesIO()
    torch.save(transform, buffer)
    buffer.seek(0)
    twins = {"state_dict": fresh, "deepcopy": copy.deepcopy(transform)}
    twins["pickle"] = torch.load(buffer, weights_only=False)
    require(type(transform).__name__ in repr(transform), "repr does not name the class")
    with torch.no_grad():
        wanted = transform(case.x, case.context)
        for way, twin in twins.items():
            require(all(map(torch.equal, twin(case.x, case.context), wanted)), f"{way} changes the outputs")


def refuses_unknown_keywords(case: Case) -> None:
    """A misspelt keyword is a TypeError, not swallowed."""
    try:
        case.make(misspelt_keyword=0)
    except TypeError:
        return
    raise ConformanceError("the constructor accepted misspelt_keyword=0")


def _strided(x: Tensor) -> Tensor:
    """The same numbers, not next to each other."""
    return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
