"""What training minimises: the weighted loss in expectation under the law of t."""

import numpy as np
import tensorflow as tf

from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.denoiser import Part
from pdm_tf.diffusion.losses import WEIGHTINGS
from pdm_tf.diffusion.schedules import linear
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS
from pdm_tf.randomness import stream
from pdm_tf.training.objective import Objective


class Zero:
    """A denoiser that predicts nothing, of a process of few steps."""

    image_shape, num_classes, conditional, null_label = (8, 8, 1), 0, False, 0
    schedule, t_start, t_stop = linear(20, 0.01, 0.4), 3, 18

    @property
    def parts(self):
        return [Part(self.t_start, self.t_stop, 1, self)]

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        return tf.zeros_like(z), tf.zeros_like(z)


def test_the_mean_loss_is_the_expectation_under_the_law():
    d = DiffusionConfig(t_distribution="logit_normal", loss_weighting="bounded_v", t_mean=0.0)
    objective, count = Objective(Zero(), d), 20_000
    x = tf.ones((count, 8, 8, 1))
    batch = tf.function(objective.draw)(stream(0, "t"), tf.range(count), x, tf.zeros(count, tf.int32), 0.0)
    found = float(tf.reduce_mean(objective(batch)["simple_loss"]))
    mass = T_DISTRIBUTIONS["logit_normal"](d, Zero.schedule, 8)[3:18]
    gamma = np.ravel(WEIGHTINGS["bounded_v"](Zero.schedule.at(tf.range(3, 18)), 0.0))
    expected = np.sum(mass / mass.sum() * gamma) * 64
    spread = np.std(np.ravel(objective(batch)["simple_loss"])) / np.sqrt(count)
    assert abs(found - expected) < 5 * spread
    # The law matters here: a uniform one gives another number.
    assert abs(expected - gamma.mean() * 64) > 20 * spread
