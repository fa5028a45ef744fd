"""A second derivative is right, or refused where it is taken; score matching and Hessians in every host."""

import nflows.distributions
import nflows.flows
import normflows as nf
import pytest
import torch
import zuko
from nflows import transforms as nt
from zuko.lazy import UnconditionalDistribution

import flowplug as fp
import flowplug_nflows
import flowplug_normflows
import flowplug_zuko
from cases import small_mlp
from helpers import sequential

ONCE = {
    "Krylov": fp.Krylov(),
    "PowerSeries": fp.PowerSeries(),
    "converged": fp.Krylov(terms=fp.Converged(1e-12), probes=fp.Orthogonal(samples=3)),
    "Recompute": fp.Krylov(gradient=fp.Recompute()),
}
RIGHT = {
    "exact": fp.ExactLogDet(),
    # A full basis and more terms than rounding sees.
    "Autograd": fp.PowerSeries(
        terms=fp.Truncated(200), probes=fp.Orthogonal(samples=3), gradient=fp.Autograd(), control=None
    ),
}


def transform_with(logdet, *, training=True, g=None):
    g = small_mlp(bound=0.7) if g is None else g
    return fp.ResidualTransform(g, logdet=logdet, eval_logdet=logdet).train(training)


def hessian(transform, x):
    return torch.autograd.functional.hessian(lambda v: transform(v)[1], x)


@pytest.mark.parametrize("make", [lambda: small_mlp(bound=0.7), sequential], ids=["chain", "autograd"])
def test_right(make):
    g, x = make(), torch.randn(3)
    exact, series = (hessian(transform_with(RIGHT[name], g=g), x) for name in ("exact", "Autograd"))
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(series, exact, atol=1e5 * eps, rtol=1e5 * eps)
    assert exact.abs().max() > 1e-3


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ONCE)
def test_refused_by_name(name, training):
    transform, x = transform_with(ONCE[name], training=training), torch.randn(2, 3, requires_grad=True)
    (score,) = torch.autograd.grad(transform(x)[1].sum(), x, create_graph=True)
    message = r"ExactLogDet\(\)"
    with pytest.raises(fp.SecondDerivativeError, match=message):
        torch.autograd.grad(score.sum(), x, retain_graph=True)
    with pytest.raises(fp.SecondDerivativeError, match=message):
        score.square().sum().backward()


def test_refused_in_forward_mode():
    transform, x = transform_with(fp.Krylov(), g=sequential()), torch.randn(2, 3)
    slope = torch.func.grad(lambda v: transform(v)[1].sum())
    with pytest.raises(fp.SecondDerivativeError):
        torch.func.jvp(slope, (x,), (torch.ones_like(x),))


def test_a_first_derivative_in_forward_mode_is_the_one_in_reverse():
    transform, x, t = transform_with(fp.Krylov(), g=sequential()), torch.randn(2, 3), torch.randn(2, 3)
    with fp.fixed_noise(0):
        reverse = torch.func.grad(lambda v: transform(v)[1].sum())(x)
        forward = torch.func.jvp(lambda v: transform(v)[1].sum(), (x,), (t,))[1]
    torch.testing.assert_close(forward, (reverse * t).sum())


def test_what_is_no_second_derivative_is_not_refused():
    """Weights of the loss may depend on anything, and y may be differentiated twice."""
    transform, x = transform_with(fp.Krylov()), torch.randn(2, 3, requires_grad=True)
    weights = torch.ones(2, requires_grad=True)
    y, ladj = transform(x)
    (score,) = torch.autograd.grad((weights * ladj).sum(), x, create_graph=True)
    (by_weights,) = torch.autograd.grad(score.sum(), weights)
    assert by_weights.abs().min() > 0
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    slope.sum().backward()


def flows(logdet):
    """A flow of each host with residual and dense transforms, as a function log p(x), and its parameters."""
    residual = {"logdet": logdet, "eval_logdet": logdet}
    own = nflows.flows.Flow(
        nt.CompositeTransform(
            [
                flowplug_nflows.ResidualTransform(3, 8, **residual),
                nt.MaskedAffineAutoregressiveTransform(3, 8),
            ]
        ),
        nflows.distributions.StandardNormal([3]),
    )
    yield own.log_prob, own
    parts = [
        flowplug_normflows.Residual(3, hidden_features=(8,), **residual),
        nf.flows.MaskedAffineAutoregressive(3, 8),
    ]
    own = nf.NormalizingFlow(nf.distributions.DiagGaussian(3), parts)
    yield own.log_prob, own
    base = UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(3), torch.ones(3), buffer=True)
    lazy = zuko.lazy.Flow([flowplug_zuko.ResidualTransform(3, hidden_features=(8,), **residual)], base)
    yield (lambda x: lazy().log_prob(x)), lazy


@pytest.mark.parametrize("host", range(3), ids=["nflows", "normflows", "zuko"])
@pytest.mark.parametrize("training", [True, False])
def test_score_matching_in_a_host(host, training):
    """The objective tr(H) + |s|^2 / 2 of Hyvarinen (2005): its gradient is that of central differences."""
    log_prob, flow = list(flows(fp.ExactLogDet()))[host]
    flow.double().train(training)
    x = torch.randn(4, 3, dtype=torch.float64)

    def objective():
        at = x.clone().requires_grad_()
        (score,) = torch.autograd.grad(log_prob(at).sum(), at, create_graph=True)
        trace = sum(torch.autograd.grad(score[:, i].sum(), at, create_graph=True)[0][:, i] for i in range(3))
        return (trace + score.square().sum(1) / 2).mean()

    objective()  # past the start from data
    with torch.no_grad():
        for parameter in flow.parameters():  # away from the kink where a norm is the bound, near which they start
            parameter.add_(0.02 * torch.randn_like(parameter))
    parameter = next(p for name, p in flow.named_parameters() if "g.layers.0.weight" in name)
    (slope,) = torch.autograd.grad(objective(), parameter)
    direction, h = torch.randn_like(parameter), 1e-7  # the norm of the network has kinks
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.add_(sign * h * direction)
        values.append(float(objective().detach()))
        with torch.no_grad():
            parameter.sub_(sign * h * direction)
    difference = (values[0] - values[1]) / (2 * h)
    assert abs(float((slope * direction).sum()) - difference) < 1e-5 * (1 + abs(difference))


@pytest.mark.parametrize("host", range(3), ids=["nflows", "normflows", "zuko"])
def test_a_host_refuses_score_matching_by_an_estimate(host):
    log_prob, _ = list(flows(fp.Krylov()))[host]
    x = torch.randn(4, 3, requires_grad=True)
    (score,) = torch.autograd.grad(log_prob(x).sum(), x, create_graph=True)
    with pytest.raises(fp.SecondDerivativeError, match=r"ExactLogDet\(\)"):
        score.square().sum().backward()
