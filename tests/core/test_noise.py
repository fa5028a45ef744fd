"""Where the numbers of an estimate come from, and passes without a log-det."""

import torch

import flowplug as fp
from cases import residual, small_mlp


def test_eval_noise_differs_between_transforms():
    g, x = fp.LipschitzMLP(300, (300,)), torch.randn(4, 300)
    a, b = fp.ResidualTransform(g).eval(), fp.ResidualTransform(g).eval()
    assert not torch.equal(a(x)[1], b(x)[1])


def test_series_length_and_probes_of_fixed_noise_do_not_share_their_numbers():
    noise, again = fp.Noise(torch.tensor(3)), fp.Noise(torch.tensor(3))
    first, second = (torch.rand(5, generator=noise.generator("cpu"), device="cpu") for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.rand(5, generator=again.generator("cpu"), device="cpu"), first)


def test_noise_comes_from_torchs_generator_and_leaves_it_alone_in_eval_mode():
    transform, x = fp.ResidualTransform(fp.LipschitzMLP(300, (300,))), torch.randn(4, 300)
    torch.manual_seed(5)
    first = transform.train()(x)[1]
    torch.manual_seed(5)
    assert torch.equal(transform(x)[1], first)
    state = torch.get_rng_state()
    transform.eval()(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_logdet(eps):
    transform, x = residual(), torch.randn(4, 3)
    with fp.no_logdet():
        y, zeros = transform(x)
        back, inverse_zeros = transform.inverse(y)
    assert not zeros.any()
    assert not inverse_zeros.any()
    torch.testing.assert_close(y, transform(x)[0], atol=10 * eps, rtol=10 * eps)
    assert transform(x)[1].any()
    assert back.requires_grad


def test_noise_of_an_estimate_repeats():
    g, x = small_mlp(), torch.randn(20, 3)
    first, again = (fp.Krylov()(fp.Branch.of(g, None), x, fp.Noise(torch.tensor(5)))[1] for _ in range(2))
    assert torch.equal(first, again)
