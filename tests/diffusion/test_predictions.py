"""x, eps and v: each stands for the same x, by their definitions."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.predictions import eps_from_x, predicted_x
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import linear


def test_x_is_found_from_x_eps_and_v():
    level = linear().at(tf.constant([0, 10, 396, 999]), tf.float64)
    rng = np.random.default_rng(0)
    x, eps = (tf.constant(rng.normal(size=(4, 2, 3, 3))) for _ in range(2))
    z = diffuse(x, eps, level)
    np.testing.assert_allclose(eps_from_x(x, z, level), eps, rtol=1e-9, atol=1e-9)
    outputs = {"x": x, "eps": eps, "v": level.signal * eps - level.noise * x}
    for prediction, output in outputs.items():
        np.testing.assert_allclose(predicted_x(prediction, output, z, level), x, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="use x, eps or v"):
        predicted_x("score", x, z, level)
