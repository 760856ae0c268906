"""Classifier-free guidance and dynamic thresholding."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.sampling.guidance import dynamic_threshold, guided
from pdm_tf.sampling.sampler import Sampler
from tests.fakes import FakeDenoiser


def linear():
    """x is (label + 1) / 10 * z, and u is that share."""

    def answer(z, t, labels):
        assert t.shape == labels.shape == z.shape[:1]
        share = tf.cast(labels + 1, tf.float32)[:, None, None, None] / 10.0
        return share * z, tf.broadcast_to(share, tf.shape(z))

    return FakeDenoiser(answer, image_shape=(4, 4, 2), num_classes=5)


Z = tf.random.stateless_normal((3, 4, 4, 2), [0, 1])
LABELS = tf.constant([0, 2, 4])


@pytest.mark.parametrize("weight", [1.0, tf.constant(1.0)])
def test_without_guidance_there_is_one_pass_and_x_is_clipped(weight):
    denoiser = linear()
    pred_x, _ = guided(denoiser, LABELS, weight)(20.0 * Z, tf.constant(7))
    assert denoiser.rows == [3]
    np.testing.assert_array_equal(pred_x, tf.clip_by_value(denoiser(20.0 * Z, LABELS, LABELS)[0], -1, 1))
    assert np.abs(pred_x).max() == 1.0


@pytest.mark.parametrize("weight", [0.0, 2.25, tf.constant(1.5)])
def test_both_passes_are_one_call_and_x_is_extrapolated_from_null_to_conditional(weight):
    denoiser = linear()
    z = 0.2 * Z
    pred_x, u = guided(denoiser, LABELS, weight)(z, tf.constant(7))
    assert denoiser.rows == [6]
    conditional, null = (LABELS.numpy() + 1) / 10, 6 / 10
    w = float(weight)
    share = (w * conditional - (w - 1) * null)[:, None, None, None]
    np.testing.assert_allclose(pred_x, share * z, atol=1e-6)
    np.testing.assert_allclose(u[:, 0, 0, 0], conditional, rtol=1e-6)


def test_of_a_batch_only_those_that_are_guided_are_passed_twice():
    denoiser, weights = linear(), np.float32([1.5, 1.0, 0.0])
    pred_x, u = guided(denoiser, LABELS, tf.constant(weights))(Z, tf.constant(7))
    assert denoiser.rows == [5]
    for place, weight in enumerate(weights):
        own = slice(place, place + 1)
        alone = guided(linear(), LABELS[own], tf.constant(weight))(Z[own], tf.constant(7))
        for found, wanted in zip((pred_x, u), alone):
            np.testing.assert_array_equal(found[own], wanted)


@pytest.mark.parametrize("weight", [1.5, tf.constant([1.5, 1.5, 1.5])])
@pytest.mark.parametrize("t", [2, 3, 6, 7])
def test_only_an_interval_is_guided(weight, t):
    denoiser = linear()
    pred_x, _ = guided(denoiser, LABELS, weight, interval=(3, 7))(Z, tf.constant(t))
    inside = 3 <= t < 7
    expected, _ = guided(linear(), LABELS, 1.5 if inside else 1.0)(Z, tf.constant(t))
    assert denoiser.rows == [6 if inside else 3]
    np.testing.assert_array_equal(pred_x, expected)
    if not tf.is_tensor(weight):
        compiled = tf.function(guided(linear(), LABELS, weight, interval=(3, 7)), jit_compile=True)
        np.testing.assert_allclose(compiled(Z, tf.constant(t))[0], expected, atol=1e-6)


def test_sampling_with_an_interval_of_all_t_is_with_guidance_everywhere():
    """In the sampler's loop, whose shapes are fixed."""
    drawn = []
    for interval in ((), (0, 1000), (1000, 1001)):
        settings = SamplingConfig("dpm_solver", (3,), guidance=1.5, guidance_interval=interval)
        drawn.append(Sampler(linear(), settings)(0, range(3), [0, 2, 4]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 0.01


def test_each_image_may_be_at_its_own_t():
    ts = tf.constant([2, 3, 6])
    denoise = guided(linear(), LABELS, 1.5, "static", (3, 7))
    pred_x, _ = denoise(Z, ts)
    compiled, _ = tf.function(denoise, jit_compile=True)(Z, ts)
    np.testing.assert_allclose(compiled, pred_x, atol=1e-6)
    for place, weight in enumerate([1.0, 1.5, 1.5]):
        own = slice(place, place + 1)
        alone, _ = guided(linear(), LABELS[own], weight, "static")(Z[own], ts[place])
        np.testing.assert_array_equal(pred_x[own], alone)


@pytest.mark.parametrize("weight", [2.0, tf.constant([2.0, 2.0, 2.0])])
def test_a_weaker_denoiser_guides_in_place_of_the_null_label(weight):
    """The guide answers half of what this one does, for the same label."""
    strong = linear()
    weak = FakeDenoiser(lambda z, t, labels: 0.5 * linear()(z, t, labels)[0], image_shape=(4, 4, 2))
    strong.guide = weak
    pred_x, u = guided(strong, LABELS, weight, "none")(Z, tf.constant(7))
    assert strong.rows == weak.rows == [3]
    x, own_u = linear()(Z, tf.fill([3], 7), LABELS)
    np.testing.assert_allclose(pred_x, 1.5 * x, rtol=1e-5)
    np.testing.assert_array_equal(u, own_u)


@pytest.mark.parametrize("t", [2, 5])
def test_a_guide_of_convolutions_rests_outside_the_interval(t):
    """TensorFlow's convolutions cannot do the empty batch that is guided there."""
    kernel = tf.ones((3, 3, 2, 2))
    weak = FakeDenoiser(lambda z, t, labels: tf.nn.conv2d(z, kernel, 1, "SAME"), image_shape=(4, 4, 2))
    strong = linear()
    strong.guide = weak
    denoise = tf.function(guided(strong, LABELS, 2.0, "none", (3, 7)))
    x, _ = linear()(Z, tf.fill([3], t), LABELS)
    expected = 2.0 * x - tf.nn.conv2d(Z, kernel, 1, "SAME") if 3 <= t < 7 else x
    np.testing.assert_allclose(denoise(Z, tf.constant(t))[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("threshold", "limit"), [("static", 1.0), ("none", np.inf)])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_other_thresholds_clip_each_value_or_none(threshold, limit, weight):
    pred_x, _ = guided(linear(), LABELS, weight, threshold)(9.0 * Z, tf.constant(7))
    share = (weight * (LABELS.numpy() + 1) / 10 - (weight - 1) * 0.6)[:, None, None, None]
    np.testing.assert_allclose(pred_x, np.clip(share * 9.0 * Z, -limit, limit), rtol=1e-5)


def test_thresholding_is_by_each_images_own_percentile():
    scales = np.float32([0.1, 3.0, 50.0])[:, None, None, None]
    x = scales * np.random.default_rng(0).standard_normal((3, 16, 16, 3)).astype(np.float32)
    limited = dynamic_threshold(tf.constant(x)).numpy()
    for image, result in zip(x, limited):
        s = max(1.0, np.percentile(np.abs(image), 99.5))
        np.testing.assert_allclose(result, np.clip(image, -s, s) / s, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(limited[0], x[0])
