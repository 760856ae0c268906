"""x_theta beside x*: a model that is x* agrees with it, and one with noise in its answers shows it."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.analysis import blur
from pdm_tf.analysis.optimum import optimum_of
from pdm_tf.diffusion.schedules import linear
from tests.analysis.subjects import model_of, small_data, subject_of
from tests.fakes import FakeDenoiser


@pytest.fixture
def best(tmp_path):
    info = small_data(tmp_path / "data")
    return info, optimum_of(info, linear(), (16, 16, 3))


def test_the_optimum_beside_itself(best, tmp_path):
    info, optimum = best
    found = blur.as_t_grows(subject_of(info, model_of(optimum, tmp_path / "run")))
    (name,) = found.numbers["energy"]
    assert name == "x, P=4"
    np.testing.assert_allclose(found.numbers["rmse_to_optimum"][name], 0, atol=1e-6)
    np.testing.assert_allclose(found.numbers["energy"][name], found.numbers["energy_optimum"], rtol=1e-5)
    energy, counts = found.numbers["energy_optimum"], found.numbers["images_averaged"]
    assert energy[0] == pytest.approx(1, abs=1e-3) and energy[-1] < 0.8  # blur increases with t
    assert counts[0] == pytest.approx(1) and 1.5 < counts[-1] <= 6.001  # of the images' own class alone
    assert found.shown["x*"].dtype == np.uint8 and len(found.shown["x*"]) == 11
    blur.draw_growth(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_noise_in_answers_at_much_noise_is_seen_and_measured(best, tmp_path):
    info, optimum = best

    def noisy(z, t, labels):
        return optimum(z, t, labels)[0] + 0.3 * tf.random.stateless_normal(tf.shape(z), (1, 2))

    clean = model_of(optimum, tmp_path / "clean")
    rough = model_of(FakeDenoiser(noisy, num_classes=2), tmp_path / "rough", diffusion__prediction="eps")
    found = blur.at_much_noise(subject_of(info, clean, rough, labels=[1]))
    assert found.numbers["t"] == 970 and found.numbers["label"] == 1
    assert found.numbers["rmse_to_optimum"] == pytest.approx({"x, P=4": 0, "eps, P=4": 0.3}, abs=0.01)
    assert found.numbers["energy_over_optimum"]["x, P=4"] == pytest.approx(1)
    assert found.numbers["energy_over_optimum"]["eps, P=4"] > 2
    assert "of the class “1”" in found.sentence and "give its run too" not in found.sentence
    blur.draw_much_noise(found, tmp_path / "b.png")
