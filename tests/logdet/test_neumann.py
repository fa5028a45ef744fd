"""The gradient by a Neumann series has the value of the differentiated one."""

import torch

import flowplug as fp
from helpers import Coupled


def test_neumann_value_equals_the_differentiated_series(eps):
    g, x = Coupled(), torch.randn(6, 4)
    values = []
    for gradient in (fp.Neumann(), fp.Autograd()):
        logdet = fp.PowerSeries(fp.Roulette(fp.Geometric(0.2), exact=3), gradient=gradient)
        with fp.fixed_noise(1):
            values.append(fp.ResidualTransform(g, logdet=logdet).train())
    values[1].noise_seed.copy_(values[0].noise_seed)
    with fp.fixed_noise(1):
        torch.testing.assert_close(values[0](x)[1], values[1](x)[1], atol=100 * eps, rtol=0)
