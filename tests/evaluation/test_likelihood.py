"""The bound in bits: closed forms of Gaussian data, experts, estimates by strata, and the command line."""

import json

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.denoiser import SplitDenoiser
from pdm_tf.diffusion.schedules import linear
from pdm_tf.errors import UserError
from pdm_tf.evaluation.likelihood import Likelihood, Way, ways_from, write_terms
from tests.evaluation.test_report import evaluate
from tests.fakes import FakeDenoiser
from tests.tiny_runs import tiny_config, write_run

MEAN, DEVIATION, SHAPE = 0.1, 0.2, (8, 8, 3)
UNCLIPPED = Way("small", clip=False)


def posterior_mean(z, t, labels):
    """E[x | z_t] of pixels that are N(MEAN, DEVIATION^2)."""
    level = linear().at(t, z.dtype)
    total = level.signal**2 * DEVIATION**2 + level.noise**2
    return MEAN + DEVIATION**2 * level.signal / total * (z - level.signal * MEAN), 0.3 * tf.ones_like(z)


def denoiser_of(t_start=0, t_stop=1000, answer=posterior_mean):
    return FakeDenoiser(answer, image_shape=SHAPE, t_start=t_start, t_stop=t_stop)


def batches_of(count, size=4):
    x = np.random.default_rng(0).normal(MEAN, DEVIATION, (count, *SHAPE))
    x = (np.round((x + 1) * 127.5) / 127.5 - 1).clip(-1, 1).astype(np.float32)
    places = np.arange(count)
    parts = [slice(s, s + size) for s in range(0, count, size)]
    return [(x[p], np.zeros(len(x[p]), np.int32), places[p].astype(np.int64)) for p in parts]


@pytest.fixture(scope="module")
def whole():
    return Likelihood(denoiser_of(), [UNCLIPPED])(batches_of(8), progress=False)[0]


def test_gaussian_data_has_its_closed_form(whole):
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # the process, written anew
    snr = alpha_bar / (1 - alpha_bar)
    # E (x - E[x | z])^2, the posterior variance; 1,536 pixels know their variance to 3.6%.
    expected = DEVIATION**2 / (DEVIATION**2 * snr + 1)
    assert abs(np.mean(whole.mse_x / expected) - 1) < 0.08
    # With sigma^2 = beta_tilde each term is half the drop of the SNR times the error (Kingma et al. 2021).
    terms = 0.5 * (snr[:-1] - snr[1:]) * whole.mse_x[1:] / np.log(2)
    np.testing.assert_allclose(whole.terms[1:], terms, rtol=2e-3)
    np.testing.assert_allclose(whole.mse_eps, whole.mse_x * snr, rtol=1e-3)


def test_it_bounds_the_entropy_of_the_data_closely(whole):
    entropy = np.log2(DEVIATION * 127.5 * np.sqrt(2 * np.pi * np.e))
    # beta_tilde is the right variance for data that are points: for these the bound is a tenth too large.
    assert entropy - 3 * whole.error_images < whole.bits_per_dim < 1.15 * entropy
    prior, *others = whole.parts
    assert prior.name == "prior" and prior.bits + np.nansum(whole.terms) == pytest.approx(whole.bits_per_dim)
    assert whole.count == 8 and others


def test_the_exact_x_of_a_small_data_set_costs_the_bits_of_saying_which_image_it_is():
    """Of K images that are far apart the reverse steps have log2(K) bits, and a little for being 1,000."""
    images, labels, places = (np.concatenate(part) for part in zip(*batches_of(16)))
    images = np.sign(images - MEAN).astype(np.float32)  # -1 and 1: on the levels, and far apart

    def exact(z, t, labels):
        level = linear().at(t, tf.float64)
        steps = tf.cast(z, tf.float64)[:, None] - level.signal[:, None] * images.astype(np.float64)
        log_weights = -tf.reduce_sum(tf.square(steps), [2, 3, 4]) / (2 * level.noise[:, :, 0, 0] ** 2)
        x = tf.einsum("bk,khwc->bhwc", tf.nn.softmax(log_weights), images.astype(np.float64))
        return tf.cast(x, z.dtype), 0 * z

    measure = Likelihood(denoiser_of(answer=exact), [UNCLIPPED])
    (found,) = measure([(images, labels, places)], draws=4, progress=False)
    bits = np.sum(found.terms[1:]) * np.prod(SHAPE)
    error = found.error_images * np.prod(SHAPE)
    assert 4 - 4 * error < bits < 4 * 1.1 + 4 * error and error < 0.4, (bits, error)


def test_experts_measure_what_one_network_does(whole):
    experts = SplitDenoiser([denoiser_of(0, 396), denoiser_of(396, 1000)])
    split = Likelihood(experts, [UNCLIPPED])(batches_of(8, 3), progress=False)[0]
    np.testing.assert_allclose(split.terms, whole.terms, rtol=1e-5, atol=1e-9)
    intervals = [(part.t_start, part.t_stop) for part in split.parts if part.name.startswith("expert")]
    assert intervals == [(0, 396), (396, 1000)]


def test_replicas_share_the_images_and_measure_what_one_device_does(whole):
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        pytest.skip("conftest made no second logical CPU: TensorFlow was initialised too early")
    with tf.distribute.MirroredStrategy([device.name for device in devices[:2]]).scope():
        measure = Likelihood(denoiser_of(), [UNCLIPPED])
    (shared,) = measure(batches_of(5, 3), strata=8, progress=False)  # 3 and 2 images: padded, and not
    (alone,) = Likelihood(denoiser_of(), [UNCLIPPED])(batches_of(5), strata=8, progress=False)
    np.testing.assert_allclose(shared.terms, alone.terms, rtol=1e-6)
    assert shared.count == 5 and shared.bits_per_dim == pytest.approx(alone.bits_per_dim, rel=1e-6)


def test_strata_estimate_the_whole_without_bias(whole):
    measure = Likelihood(denoiser_of(), [UNCLIPPED])
    found = [measure(batches_of(8, 8), seed=s, strata=16, progress=False)[0].bits_per_dim for s in range(40)]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert error < 0.05 and abs(np.mean(found) - whole.bits_per_dim) < 4 * error + 1e-3
    with pytest.raises(UserError):
        measure(batches_of(8, 8), strata=1001, progress=False)


def test_clipping_and_variances_change_what_they_should():
    wild = denoiser_of(answer=lambda z, t, labels: (3.0 * tf.ones_like(z), 0.5 * tf.ones_like(z)))
    clipped, free = Likelihood(wild, [Way("small", True), UNCLIPPED])(batches_of(4), strata=8, progress=False)
    assert clipped.bits_per_dim < free.bits_per_dim
    np.testing.assert_allclose(free.mse_x[0], np.mean((batches_of(4)[0][0] - 3.0) ** 2), rtol=1e-5)
    assert len(ways_from("large")) == 6 and ways_from("large")[0] == Way("large", True)
    together = Likelihood(denoiser_of(), ways_from("small"))(batches_of(4), strata=32, progress=False)
    assert len({one.bits_per_dim for one in together if one.way.clip}) == 3
    # All of them by one run of the network are what each is by itself.
    for one in together:
        (alone,) = Likelihood(denoiser_of(), [one.way])(batches_of(4), strata=32, progress=False)
        np.testing.assert_allclose(one.terms, alone.terms, rtol=1e-9)
        assert one.unfloored == pytest.approx(alone.unfloored) and one.way == alone.way


def test_finished_batches_are_gone_on_from_and_images_must_be_of_8_bits(tmp_path):
    denoiser = denoiser_of()
    measure = Likelihood(denoiser, [Way("small")])
    batches = batches_of(8)
    measure(batches[:1], strata=8, folder=tmp_path, progress=False)
    (resumed,) = measure(batches, strata=8, folder=tmp_path, progress=False)
    (straight,) = measure(batches, strata=8, progress=False)
    assert resumed.bits_per_dim == straight.bits_per_dim and len(list(tmp_path.iterdir())) == 2
    write_terms(tmp_path / "terms.npz", straight)
    with np.load(tmp_path / "terms.npz") as file:
        assert {"vb_terms", "mse_terms", "xstart_mse_terms"} <= set(file.files)
        np.testing.assert_array_equal(file["vb_terms"], straight.terms)
    x, labels, places = batches[0]
    with pytest.raises(UserError):
        measure([(x + 0.001, labels, places)], strata=8, progress=False)


def test_the_command_line_measures_a_run(tmp_path, capsys):
    config = tiny_config(data__image_shape=(64, 64, 3), data__num_classes=9, data__label_names=())
    write_run(tmp_path / "run", config)
    flags = {"likelihood": True, "run_dir": str(tmp_path / "run"), "num_samples": 6, "strata": 4}
    status, out = evaluate(capsys, **flags, out=str(tmp_path / "out"))
    assert status == 0 and "| part | bits/dim | standard error |" in out
    found = json.loads((tmp_path / "out" / "likelihood.json").read_text())
    assert found["split"] == "validation" and found["count"] == 6 and found["bits_per_dim"] > 0
    assert (
        found["clip"]
        and len(found["ways"]) == 6
        and found["ways"][0]["bits_per_dim"] == found["bits_per_dim"]
    )
    status, err = evaluate(capsys, **flags, detector="inception")
    assert status == 2 and "--detector is not for --likelihood" in err
    status, err = evaluate(capsys, strata=4)
    assert status == 2 and "--strata needs --likelihood" in err
