"""The averages of the weights against their closed forms."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.averages import gamma_of
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.weights import read_arrays


def test_average_equals_its_closed_form():
    variable = tf.Variable([1.0])
    ema = ExponentialMovingAverage([variable], decay=0.9)
    values = [3.0, -2.0, 5.0]
    for number, value in enumerate(values):
        variable.assign([value])
        ema.update(number)
    expected = 0.9**3 * 1.0 + sum(0.1 * 0.9 ** (2 - i) * value for i, value in enumerate(values))
    assert float(ema.averages[0][0]) == pytest.approx(expected, rel=1e-6)


def test_an_update_takes_the_weights_of_its_own_moment():
    # Large enough that the sums are not done when `update` returns.
    variable = tf.Variable(tf.ones([4_000_000]))
    ema = ExponentialMovingAverage([variable], decay=0.5)
    for number, value in enumerate([3.0, 5.0]):
        variable.assign(tf.fill([4_000_000], value))
        ema.update(number)
        variable.assign_add(tf.fill([4_000_000], 100.0))  # the next step, in place
    np.testing.assert_array_equal(ema.averages[0], np.float32(3.5))


@pytest.mark.parametrize("warmup", [False, True])
def test_the_share_of_the_first_weights_is_what_is_left_of_them(warmup):
    variable = tf.Variable([1.0])
    ema = ExponentialMovingAverage([variable], 0.6, warmup)
    variable.assign([0.0])
    assert ema.share_of_first(0) == 1.0
    for number in range(12):
        ema.update(number)
        assert ema.share_of_first(number + 1) == pytest.approx(float(ema.averages[0][0]), rel=1e-5)


def test_applied_gives_the_variables_back_bit_for_bit():
    own = np.random.default_rng(0).normal(size=7).astype(np.float32)
    variable = tf.Variable(own)
    ema = ExponentialMovingAverage([variable], 0.9)
    ema.averages[0][:] = 2.0
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        np.testing.assert_array_equal(variable, 2.0)
        raise RuntimeError("inside")
    np.testing.assert_array_equal(variable, own)


@pytest.mark.parametrize("length", [0.01, 0.25])
def test_power_averages_equal_their_closed_form(tmp_path, length):
    """Eq. 2, of weights that stay as an update finds them since the update before it."""
    history = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    variable = tf.Variable([1e9, -1e9, 1e9], name="network/kernel")  # the first weights leave no trace
    ema = ExponentialMovingAverage([variable], decay=0.9, lengths=[length])
    for number, values in enumerate(history):
        variable.assign(values)
        ema.update(number)
    ema.save(tmp_path / "length.npz", length)
    power, t = gamma_of(length) + 1, np.arange(41) / 40
    expected = sum((t[k + 1] ** power - t[k] ** power) * history[k].astype(np.float64) for k in range(40))
    np.testing.assert_allclose(read_arrays(tmp_path / "length.npz")["network/kernel"], expected, rtol=2e-6)
