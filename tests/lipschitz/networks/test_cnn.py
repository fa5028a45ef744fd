"""Convolutional networks: one for images of every size."""

import pytest
import torch

import flowplug as fp


def test_one_network_for_images_of_every_size():
    transform = fp.ResidualTransform(fp.LipschitzCNN(2, (4, 4)))
    assert transform.event_dim == 3
    for size in ((2, 1, 1), (2, 5, 3)):
        x = torch.randn(2, *size)
        y = transform(x)[0]
        torch.testing.assert_close(transform.inverse(y)[0], x, atol=1e-4, rtol=0)
    with pytest.raises(fp.ShapeError):
        transform(torch.randn(2, 3, 4, 4))


def test_kernels():
    g = fp.LipschitzCNN(2, (4, 4, 4))
    assert [tuple(layer.kernel_size) for layer in g.layers] == [(3, 3), (1, 1), (1, 1), (3, 3)]
    g = fp.LipschitzCNN(2, (4,), kernel_sizes=(5, 1), padding_mode="circular")
    assert [tuple(layer.kernel_size) for layer in g.layers] == [(5, 5), (1, 1)]
    with pytest.raises(fp.ShapeError, match="2 layers and needs as many kernel_sizes; got 1"):
        fp.LipschitzCNN(2, (4,), kernel_sizes=(3,))
    for wrong in ({"channels": 0}, {"hidden_channels": (4, 0)}, {"kernel_sizes": (3, 0, 3)}):
        with pytest.raises(fp.ShapeError, match="positive sizes"):
            fp.LipschitzCNN(**{"channels": 2, **wrong})


def test_norms_from_p_to_q_are_refused():
    for norm in (fp.LearnedOrder(), fp.InducedNorm(1.5, 2)):
        with pytest.raises(fp.LipschitzError, match="depends on the size of the image"):
            fp.LipschitzCNN(2, (4,), norm=norm)
