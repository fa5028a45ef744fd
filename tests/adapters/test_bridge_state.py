"""What a bridge shares with its host, and what it keeps the host from writing on."""

import normflows as nf
import pytest
import torch
from nflows import transforms as nt

from flowplug_nflows import from_nflows
from flowplug_normflows import from_normflows


class TestMutation:
    """What hosts write on."""

    def test_an_in_place_shift_leaves_the_input_alone(self):
        x = torch.randn(4, 2, requires_grad=True)
        before = x.detach().clone()
        for direction in (from_normflows(nf.transforms.Shift()), from_normflows(nf.transforms.Shift()).inverse):
            direction(x)[0].sum().backward()
            assert torch.equal(x, before)

    def test_actnorm_waits_for_train_mode(self):
        x, transform = 3 + 2 * torch.randn(64, 2), from_normflows(nf.flows.ActNorm((2,)))
        transform.eval()
        before = {name: value.clone() for name, value in transform.state_dict().items()}
        assert torch.equal(transform(x)[0], x)
        assert torch.equal(transform.inverse(x)[0], x)
        assert all(torch.equal(value, before[name]) for name, value in transform.state_dict().items())
        y = transform.train()(x)[0]
        assert float(y.detach().mean().abs()) < 1e-4
        assert torch.equal(transform.eval()(x)[0], y)

    def test_actnorm_takes_the_first_direction_in_train_mode(self):
        z = 3 + 2 * torch.randn(64, 2)
        transform = from_normflows(nf.flows.ActNorm((2,)))
        x = transform.inverse(z)[0]
        assert float(x.detach().mean().abs()) < 1e-4
        torch.testing.assert_close(transform(x)[0], z)

    def test_actnorm_waits_inside_a_block_whatever_happens(self):
        transform = from_normflows(nf.flows.GlowBlock(2, 8), event_dim=3).eval()
        with pytest.raises(RuntimeError):
            transform(torch.randn(4, 7, 2, 2))
        (norm,) = [module for module in transform.modules() if isinstance(module, nf.flows.ActNorm)]
        assert not norm.data_dep_init_done


def test_parameters_are_shared_and_move_with_the_bridge():
    """The laws on saving and copying hold besides."""
    host = nt.LULinear(2)
    transform = from_nflows(host)
    assert set(map(id, transform.parameters())) == set(map(id, host.parameters()))
    assert transform.state_dict().keys() == {f"host.{name}" for name in host.state_dict()}
    transform.eval().to(torch.float32)
    assert not host.training
    assert next(host.parameters()).dtype == torch.float32
