"""The benchmark of images, on small ones."""

import numpy as np
import pytest
import torch

import flowplug as fp
from benchmarks import image_costs


@pytest.fixture
def settings():
    return image_costs.Settings(hidden=4, blocks=1, steps=2, batch=8, draws=8, rounds=2)


@pytest.mark.usefixtures("users_defaults")
class TestImages:
    def test_digits_have_17_levels_and_files_256(self, settings, tmp_path):
        grey, levels = image_costs.pixels(settings.data)
        assert (grey.shape[1:], levels, int(grey.max())) == ((8, 8), 17, 16)
        parts = {part: np.zeros((3, 6, 6), np.uint8) for part in ("train", "val", "test")}
        np.savez(tmp_path / "some.npz", **parts)
        grey, levels = image_costs.pixels(str(tmp_path / "some.npz"))
        assert (grey.shape, levels) == ((3, 6, 6), 256)

    def test_batches_are_normal_scores_squeezed_once(self, settings):
        x = image_costs.Images(*image_costs.pixels(settings.data))(4000)
        assert x.shape == (4000, 4, 4, 4)
        torch.testing.assert_close(x.mean(0), torch.zeros(4, 4, 4), atol=0.2, rtol=0)
        torch.testing.assert_close(x.std(0), torch.ones(4, 4, 4), atol=0.2, rtol=0)

    def test_noise_is_that_of_the_estimates(self, settings):
        sample = image_costs.Images(*image_costs.pixels(settings.data))
        flow = image_costs.trained(settings, sample)
        rows = list(image_costs.noise(settings, flow, sample(40)))
        ratios = {setting["terms"]: figures["variance"].value for _, setting, figures in rows}
        assert ratios[image_costs.BEFORE] == 1
        assert ratios["4 terms, groups of 4"] < 1
        assert all(part.logdet is None for part in flow.transforms if isinstance(part, fp.ResidualTransform))

    def test_evaluation_and_samples(self, settings):
        sample = image_costs.Images(*image_costs.pixels(settings.data))
        flow, x = image_costs.trained(settings, sample), sample(4)
        (_, _, ours), (_, _, published) = image_costs.evaluation(settings, flow, x)
        assert ours["standard deviation"].value == 0  # 64 numbers: exact
        assert published["standard deviation"].value > 0
        ((_, _, figures),) = image_costs.sampling(settings, flow, x.shape[1:])
        assert figures["largest error"] < 1e-4
