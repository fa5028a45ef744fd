"""Laws of the protocol: shapes, dtypes, inputs of any layout and size, saving, keywords."""

import copy
import io
import math

import torch

from flowplug._errors import FlowplugError
from flowplug.testing._case import Case, directions, leaves
from flowplug.testing._comparison import ConformanceError, require, require_close


def keeps_shape_and_dtype(case: Case) -> None:
    """Outputs have the input's shape, dtype and device, ladjs the batch shape, for any batch dimensions."""
    event, count = case.x.shape[1:], len(case.x)
    for dtype in (torch.float32, torch.float64):
        transform = case.build(training=True).to(dtype)
        for batch in ((count,), (1, count), (), (0,)):
            size = math.prod(batch)
            x = case.x[:size].to(dtype).reshape(*batch, *event)
            context = case.context
            if context is not None:
                context = context[:size].to(dtype).reshape(*batch, context.shape[-1])
            for _, direction in directions(transform):
                for tensor, shape in zip(direction(x, context), (x.shape, batch), strict=True):
                    got, wanted = (tensor.shape, tensor.dtype, tensor.device), (torch.Size(shape), dtype, x.device)
                    require(got == wanted, f"expected {wanted}, got {got}")


def leaves_inputs_alone(case: Case) -> None:
    """The caller's tensors are neither changed nor marked, in any grad mode, and every ladj has memory of its own."""
    transform = case.build(training=True)
    inputs = [case.x] if case.context is None else [case.x, case.context]
    before = [tensor.clone() for tensor in inputs]
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        for _, direction in directions(transform):
            with mode():
                output, ladj = direction(case.x, case.context)
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
    count, x, context = len(case.x), case.x, case.context
    inputs = {
        "strided inputs": (_strided(x), None if context is None else _strided(context)),
        "transposed inputs": (x.movedim(0, -1).contiguous().movedim(-1, 0), context),
        "two batch dimensions": (x[:, None], None if context is None else context[:, None]),
        "expanded inputs": (x[:1].expand(x.shape), None if context is None else context[:1].expand(context.shape)),
    }
    for name, (given, by) in inputs.items():
        batch = given.shape[: given.dim() - x.dim() + 1]
        plain = given.reshape(x.shape).clone(memory_format=torch.contiguous_format)
        plain_context = None if by is None else by.reshape(count, -1).clone(memory_format=torch.contiguous_format)
        for way, direction in directions(transform):
            with torch.no_grad():
                got, wanted = direction(given, by), direction(plain, plain_context)
            require_close(f"{way} with {name}", got[0], wanted[0].reshape(given.shape))
            require_close(f"ladj of {way} with {name}", got[1], wanted[1].reshape(batch))
    if torch.is_inference_mode_enabled():
        return
    for training in (True, False):
        transform.train(training)
        for way, direction in directions(transform):
            point, by = leaves(case)
            output, ladj = direction(point[:0], None if by is None else by[:0])
            require(output.shape == x[:0].shape and ladj.shape == (0,), f"{way} of no rows: got {tuple(output.shape)}")
            loss = output.sum() + ladj.sum()
            if loss.requires_grad:
                torch.autograd.backward(loss)
            require(point.grad is None or not point.grad.any(), f"{way} of no rows has a gradient")


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


def _strided(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, not next to each other."""
    return torch.stack([x, torch.zeros_like(x)], -1)[..., 0]
