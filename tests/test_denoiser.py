"""The denoiser of one network."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.predictions import predicted_x
from tests.tiny_runs import tiny_config, tiny_denoiser


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_it_predicts_x_whatever_its_network_predicts(prediction):
    z, t = tf.random.stateless_normal((2, 16, 16, 3), [1, 2]), tf.constant([3, 500])
    denoiser = tiny_denoiser(tiny_config(diffusion__prediction=prediction), 2)
    output, u = denoiser.network(z, t, t % 3)
    pred_x, same_u = denoiser(z, t, t % 3)
    np.testing.assert_array_equal(pred_x, predicted_x(prediction, output, z, denoiser.schedule.at(t)))
    np.testing.assert_array_equal(u, same_u)
