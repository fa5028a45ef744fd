"""The hosts' own checks of a transform or a flow, which their tests and those of the bridges run."""

import copy

import torch
from nflows import transforms

import flowplug_zuko


def check_forward_inverse(transform, x, context=None, *, atol=None, rtol=0):
    """As in nflows' own tests: the inverse first, then forward, as one composite."""
    both = transforms.CompositeTransform([transforms.InverseTransform(transform), transform])
    y, logabsdet = both(x, context)
    if atol is None:
        atol = 1e-11 if x.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(y, x, atol=atol, rtol=rtol)
    torch.testing.assert_close(logabsdet, torch.zeros(len(x)), atol=atol, rtol=rtol)
    assert not y.isnan().any()


def train(flow, loss, steps=5):
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    first = None
    for _ in range(steps):
        value = loss()
        first = float(value.detach()) if first is None else first
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert all(p.grad is not None for p in flow.parameters())
    assert float(loss().detach()) < first


class ZukoChecks:
    """zuko's own checks of a flow."""

    def test_density_and_its_gradients(self, flow):
        x, c = torch.randn(64, 3), torch.randn(5)
        log_p = flow(c).log_prob(x)
        assert log_p.shape == (64,)
        assert log_p.requires_grad
        flow.zero_grad(set_to_none=True)
        (-log_p.mean()).backward()
        assert all(p.grad is not None for p in flow.parameters())

    def test_batched_context_and_no_batch(self, flow):
        x, c = torch.randn(4, 3), torch.randn(4, 5)
        assert flow(c).log_prob(x).shape == (4,)
        assert flow(c).log_prob(torch.randn(7, 4, 3)).shape == (7, 4)
        assert flow(c[0]).log_prob(x[0]).shape == ()
        assert flow(c).sample((2,)).shape == (2, 4, 3)

    def test_empty_batch_and_broadcasting_of_our_transform(self):
        t = flowplug_zuko.ResidualTransform(3, 5)(torch.randn(4, 5))
        for batch, wanted in (((0, 4), (0, 4)), ((7, 1), (7, 4)), ((), (4,))):
            y, ladj = t.call_and_ladj(torch.randn(*batch, 3))
            assert y.shape == (*wanted, 3)
            assert ladj.shape == wanted

    def test_sampling_and_its_gradients(self, flow):
        z = flow(torch.randn(5)).rsample((32,))
        assert z.shape == (32, 3)
        flow.zero_grad(set_to_none=True)
        z.sum().backward()
        assert all(p.grad is not None for p in flow.parameters())

    def test_samples_with_their_density(self, flow):
        distribution = flow(torch.randn(5))
        x, log_p = distribution.rsample_and_log_prob((32,))
        atol = 1e-9 if x.dtype == torch.float64 else 1e-3
        torch.testing.assert_close(distribution.log_prob(x), log_p, atol=atol, rtol=0)

    def test_transform(self, flow):
        transform, x = flow(torch.randn(5)).transform, torch.randn(6, 3)
        atol = 1e-9 if x.dtype == torch.float64 else 1e-3
        torch.testing.assert_close(transform.inv(transform(x)), x, atol=atol, rtol=0)
        torch.testing.assert_close(transform(transform.inv(x)), x, atol=atol, rtol=0)
        for direction in (transform, transform.inv):
            y, ladj = direction.call_and_ladj(x[0])
            jacobian = torch.autograd.functional.jacobian(direction, x[0])
            torch.testing.assert_close(ladj, torch.linalg.slogdet(jacobian).logabsdet, atol=atol, rtol=0)
            torch.testing.assert_close(direction.log_abs_det_jacobian(x[0], y), ladj, atol=atol, rtol=0)

    def test_train_and_eval_agree(self, flow):
        x, c = torch.randn(6, 3), torch.randn(5)
        assert torch.equal(flow.train()(c).log_prob(x), flow.eval()(c).log_prob(x))

    def test_saving_the_whole_flow(self, flow, tmp_path):
        x, c = torch.randn(6, 3), torch.randn(5)
        torch.save(flow, tmp_path / "flow.pth")
        loaded = torch.load(tmp_path / "flow.pth", weights_only=False)
        wanted = flow(c).log_prob(x)
        assert torch.equal(loaded(c).log_prob(x), wanted)
        assert torch.equal(copy.deepcopy(flow)(c).log_prob(x), wanted)

    def test_repr(self, flow):
        assert "ResidualTransform" in repr(flow)
        assert repr(flow(torch.randn(5)))
