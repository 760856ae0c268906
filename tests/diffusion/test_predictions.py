"""x, eps and v: conversions that undo each other, and their definitions."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.predictions import eps_from_x, predicted_x, v_from_x
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import linear

SCHEDULE = linear()
STEPS = [0, 10, 396, 999]
LEVEL = SCHEDULE.at(tf.constant(STEPS), tf.float64)


def draw():
    rng = np.random.default_rng(0)
    x, eps = (tf.constant(rng.normal(size=(4, 2, 3, 3))) for _ in range(2))
    return x, eps, diffuse(x, eps, LEVEL)


def test_definitions():
    x, eps, z = draw()
    np.testing.assert_allclose(eps_from_x(x, z, LEVEL), eps, rtol=1e-9, atol=1e-9)
    alpha = SCHEDULE.alpha[STEPS].reshape(-1, 1, 1, 1)
    v = np.sqrt(alpha) * eps - np.sqrt(1 - alpha) * x
    np.testing.assert_allclose(v_from_x(x, z, LEVEL), v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_round_trip(prediction):
    x, _, z = draw()
    output = {"x": x, "eps": eps_from_x(x, z, LEVEL), "v": v_from_x(x, z, LEVEL)}
    again = predicted_x(prediction, output[prediction], z, LEVEL)
    np.testing.assert_allclose(again, x, rtol=1e-9, atol=1e-9)


def test_unknown_prediction_is_refused():
    x, _, z = draw()
    with pytest.raises(ValueError, match="use x, eps or v"):
        predicted_x("score", x, z, LEVEL)
