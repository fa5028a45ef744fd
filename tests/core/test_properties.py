"""Whatever tensor a transform is given, it answers rightly or with an error of flowplug: no other error, no NaN."""

import functools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nflows.transforms.base import InverseNotAvailable

import flowplug as fp
from cases import ADAPTERS, CORE
from flowplug.testing import Case

TABLE = {**CORE, **ADAPTERS}
# nflows has its own error for an inverse that was not found, and its users expect that one.
OURS = (fp.FlowplugError, InverseNotAvailable)
REAL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHER = [torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]

few = settings(
    max_examples=5,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# The same numbers in memory laid out in other ways.
LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() else x,
    "every second": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].reshape(x.shape),
    "negated": lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag if x.dtype.itemsize >= 4 else x,
    "expanded": lambda x: x[:1].expand(x.shape) if x.dim() else x,
}

batches = st.lists(st.integers(0, 3), max_size=3).map(tuple)
events = st.lists(st.integers(0, 4), max_size=4).map(tuple)
seeds, coins = st.integers(0, 2**16), st.booleans()
layouts = st.sampled_from(sorted(LAYOUTS))
scales = st.one_of(st.just(0.0), st.floats(-30, 30).map(lambda e: 10.0**e))


rows = pytest.mark.parametrize("name", TABLE)


@functools.cache
def built(name, dtype):
    """A transform past its start, of this dtype."""
    torch.manual_seed(0)
    transform = Case(TABLE[name].make, *TABLE[name].inputs(64)).start()
    return transform.to(dtype)


@functools.cache
def sides(name):
    """The shapes of an event and of its latent."""
    case = Case(TABLE[name].make, *TABLE[name].inputs(2))
    return tuple(case.x.shape[1:]), tuple(case.y.shape[1:])


def answers(name, transform, x, context, *, training, inverse):
    """Checks one call and the way back; the error, or None."""
    given, returned = reversed(sides(name)) if inverse else sides(name)
    event, (low, high) = len(given), TABLE[name].support
    if math.isfinite(high - low) and x.dtype in REAL and not inverse:
        x = low + (high - low) * x.abs() / (1 + x.abs())
    there, back = (transform.inverse, transform) if inverse else (transform, transform.inverse)
    transform.train(training)
    torch.manual_seed(0)
    try:
        y, ladj = there(x, context)
    except OURS as error:
        return error
    batch = x.shape[: x.dim() - event]
    if context is not None:
        batch = torch.broadcast_shapes(batch, context.shape[:-1])
    out = x.shape[x.dim() - event :] if given == returned else y.shape[len(batch) :]
    assert (y.shape, ladj.shape) == (batch + out, batch)
    assert len(out) == len(returned)
    assert (y.dtype, ladj.dtype) == (x.dtype, x.dtype)
    assert y.isfinite().all()
    assert ladj.isfinite().all()
    try:
        z = back(y, context)[0]
    except OURS as error:
        return error
    if math.isfinite(high - low) and inverse:
        return None  # numbers near the ends of an interval are few: far latents do not come back
    x = x.expand(z.shape)
    wanted, got, latent = (part.double().reshape(*batch, math.prod(part.shape[len(batch) :])) for part in (x, z, y))
    allowed = 200 * torch.finfo(x.dtype).eps * (1 + wanted.abs().sum(-1) + latent.abs().sum(-1))
    assert ((got - wanted).abs().sum(-1) <= allowed).all()
    return None


def drawn(shape, seed, scale=1.0, *, mixed=False, dtype=None):
    """Numbers of this scale, or each of its own up to this scale, with a zero among them."""
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64).clamp(-3, 3)
    x = x * (scale * 10 ** (-60 * torch.rand(shape, dtype=torch.float64)) if mixed else scale)
    return (x * (torch.rand(shape) > 0.1)).to(dtype or torch.get_default_dtype())


def context_for(name, batch, seed, scale=1.0, *, dtype=None):
    width = TABLE[name].context
    return drawn((*batch, width), seed + 1, scale, dtype=dtype) if width else None


@rows
@few
@given(batch=batches, layout=layouts, seed=seeds, training=coins, inverse=coins)
def test_shapes_and_strides(name, batch, layout, seed, training, inverse):
    transform = built(name, torch.get_default_dtype())
    x = LAYOUTS[layout](drawn((*batch, *sides(name)[inverse]), seed))
    context = context_for(name, batch, seed)
    context = None if context is None else LAYOUTS[layout](context)
    assert answers(name, transform, x, context, training=training, inverse=inverse) is None


@rows
@few
@given(
    batch=batches, event=st.lists(st.integers(0, 4), max_size=4).map(tuple), seed=seeds, training=coins, inverse=coins
)
def test_events_of_another_shape(name, batch, event, seed, training, inverse):
    transform, x = built(name, torch.get_default_dtype()), drawn((*batch, *event), seed)
    answers(name, transform, x, context_for(name, batch, seed), training=training, inverse=inverse)


# normflows' own networks multiply by ones of torch's default dtype.
@pytest.mark.parametrize("name", [name for name in TABLE if "normflows own" not in name])
@few
@given(dtype=st.sampled_from(REAL + OTHER), cast=coins, seed=seeds, training=coins, inverse=coins)
def test_dtypes(name, dtype, cast, seed, training, inverse):
    own = torch.get_default_dtype()
    cast = cast and dtype in REAL
    x, context = drawn((3, *sides(name)[inverse]), seed).to(dtype), context_for(name, (3,), seed, dtype=dtype)
    transform = built(name, dtype if cast else own)
    error = answers(name, transform, x, context, training=training, inverse=inverse)
    if dtype in OTHER:
        assert isinstance(error, fp.DtypeError)
    if dtype in (torch.float32, torch.float64) and cast:
        assert error is None


@rows
@few
@given(scale=scales, mixed=coins, seed=seeds, training=coins, inverse=coins)
def test_scales(name, scale, mixed, seed, training, inverse):
    transform = built(name, torch.get_default_dtype())
    x, context = drawn((4, *sides(name)[inverse]), seed, scale, mixed=mixed), context_for(name, (4,), seed)
    error = answers(name, transform, x, context, training=training, inverse=inverse)
    assert error is None or scale > 1e15


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.context])
@few
@given(batch=batches, data=st.data(), scale=scales, seed=seeds, training=coins, inverse=coins)
def test_contexts(name, batch, data, scale, seed, training, inverse):
    # Any shape that broadcasts against the batch, or that the batch broadcasts against, and some that do neither.
    kept = data.draw(st.integers(0, len(batch)))
    other = tuple(data.draw(st.sampled_from([size, 1, 2])) for size in batch[len(batch) - kept :])
    transform, x = built(name, torch.get_default_dtype()), drawn((*batch, *sides(name)[inverse]), seed)
    context = context_for(name, other, seed, scale)
    error = answers(name, transform, x, context, training=training, inverse=inverse)
    fits = all(a == b or 1 in (a, b) for a, b in zip(reversed(batch), reversed(other), strict=False))
    assert (error is None or scale > 1e15) if fits else isinstance(error, fp.ShapeError)


def test_the_scales_reach_what_they_claim():
    found = drawn((1000,), 0, 1e30, mixed=True, dtype=torch.float64).abs()
    assert found.amax() > 1e28
    assert 0 < found[found > 0].amin() < 1e-28
    assert math.isclose(float((found == 0).double().mean()), 0.1, abs_tol=0.05)
