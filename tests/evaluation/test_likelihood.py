"""The bound in bits: closed forms of Gaussian data, experts, estimates by strata, kept batches."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.denoiser import SplitDenoiser
from pdm_tf.diffusion.schedules import linear
from pdm_tf.errors import UserError
from pdm_tf.evaluation.likelihood import Likelihood
from pdm_tf.ledger import Ledger
from tests.fakes import FakeDenoiser

MEAN, DEVIATION, SHAPE = 0.1, 0.2, (8, 8, 3)
SPLIT = [(0, 396), (396, 1000)]


def posterior_mean(z, t, labels):
    """E[x | z_t] of pixels that are N(MEAN, DEVIATION^2)."""
    level = linear().at(t, z.dtype)
    total = level.signal**2 * DEVIATION**2 + level.noise**2
    return MEAN + DEVIATION**2 * level.signal / total * (z - level.signal * MEAN), 0.3 * tf.ones_like(z)


def likelihood_of(t_start=0, t_stop=1000, answer=posterior_mean, variance="small"):
    denoiser = FakeDenoiser(answer, image_shape=SHAPE, t_start=t_start, t_stop=t_stop)
    return Likelihood(denoiser, variance)


def batches_of(count, size=4):
    x = np.random.default_rng(0).normal(MEAN, DEVIATION, (count, *SHAPE))
    x = (np.round((x + 1) * 127.5) / 127.5 - 1).clip(-1, 1).astype(np.float32)
    parts = [slice(start, start + size) for start in range(0, count, size)]
    return [(x[part], np.zeros(len(x[part]), np.int32), np.arange(count)[part]) for part in parts]


def measured(likelihood, folder, batches, **options):
    """The result, and the bits of each t, which the ledger keeps: NaN where no t was drawn."""
    ledger = Ledger(folder, {})
    found = likelihood(batches, ledger=ledger, **options)
    parts = [ledger.read(name) for name in sorted(ledger.names())]
    t, bits = (np.concatenate([part[name].ravel() for part in parts]) for name in ("t", "bits"))
    with np.errstate(invalid="ignore"):
        return found, np.bincount(t, bits, 1000) / np.bincount(t, minlength=1000)


@pytest.fixture(scope="module")
def likelihood():
    return likelihood_of()


@pytest.fixture(scope="module")
def whole_and_terms(likelihood, tmp_path_factory):
    return measured(likelihood, tmp_path_factory.mktemp("whole"), batches_of(8))


@pytest.fixture(scope="module")
def whole(whole_and_terms):
    return whole_and_terms[0]


def test_gaussian_data_has_its_closed_form(whole_and_terms):
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))  # the process, written independently
    snr = alpha_bar / (1 - alpha_bar)
    # E (x - E[x | z])^2, the posterior variance; 1,536 pixels know their variance to 3.6%.
    posterior_variance = DEVIATION**2 / (DEVIATION**2 * snr + 1)
    # With sigma^2 = beta_tilde each term is half the drop of the SNR times the error (Kingma et al. 2021).
    terms = 0.5 * (snr[:-1] - snr[1:]) * posterior_variance[1:] / np.log(2)
    assert abs(np.mean(whole_and_terms[1][1:] / terms) - 1) < 0.08


def test_it_bounds_the_entropy_of_the_data_closely(whole, whole_and_terms):
    entropy = np.log2(DEVIATION * 127.5 * np.sqrt(2 * np.pi * np.e))
    value, error, _ = whole.bits_per_dim
    # beta_tilde is the right variance for data that are points: for these the bound is a tenth too large.
    assert entropy - 3 * error < value < 1.15 * entropy
    assert [interval.title.split(",")[0] for interval in whole.intervals] == ["L_T", "L_1..999", "L_0"]
    assert sum(interval.bits.value for interval in whole.intervals) == pytest.approx(value)
    assert whole.intervals[0].bits.value + np.sum(whole_and_terms[1]) == pytest.approx(value)
    assert whole.count == 8
    assert whole.to_json()["bits_per_dim"] == {"value": value, "error": error}
    assert f"| bits/dim | {value:.4f} | {error:.4f} |" in whole.table()


def test_experts_measure_what_one_network_does_and_have_their_own_intervals(likelihood, tmp_path):
    parts = [FakeDenoiser(posterior_mean, image_shape=SHAPE, t_start=a, t_stop=b) for a, b in SPLIT]
    experts = Likelihood(SplitDenoiser(parts), "small")
    split, terms = measured(experts, tmp_path / "split", batches_of(8, 3), strata=50)
    _, expected = measured(likelihood, tmp_path / "one", batches_of(8), strata=50)
    np.testing.assert_allclose(terms, expected, rtol=1e-5, atol=1e-9)
    experts = split.intervals[-2:]
    assert [(one.t_start, one.t_stop) for one in experts] == SPLIT
    assert sum(one.bits.value for one in experts) == pytest.approx(split.bits_per_dim.value, rel=1e-3)


def test_replicas_share_the_images_and_measure_what_one_device_does(likelihood, tmp_path):
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        pytest.skip("conftest made no second logical CPU: TensorFlow was initialised too early")
    with tf.distribute.MirroredStrategy([device.name for device in devices[:2]]).scope():
        shared = likelihood_of()
    # 3 and 2 images: padded, and not.
    shared, terms = measured(shared, tmp_path / "shared", batches_of(5, 3), strata=8)
    alone, expected = measured(likelihood, tmp_path / "alone", batches_of(5), strata=8)
    np.testing.assert_allclose(terms, expected, rtol=1e-6)
    assert shared.count == 5 and shared.bits_per_dim[:2] == pytest.approx(alone.bits_per_dim[:2], rel=1e-6)


def test_strata_estimate_the_whole_without_bias(likelihood, whole):
    found = [likelihood(batches_of(8, 8), seed=seed, strata=16).bits_per_dim.value for seed in range(40)]
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert error < 0.05 and abs(np.mean(found) - whole.bits_per_dim.value) < 4 * error + 1e-3
    with pytest.raises(UserError, match="there are 999 t after the first"):
        likelihood(batches_of(8, 8), strata=1001)


def test_the_variance_changes_the_bound_and_x_is_clipped(likelihood):
    small = likelihood(batches_of(4), strata=8)
    large = likelihood_of(variance="large")(batches_of(4), strata=8)
    assert small.bits_per_dim != large.bits_per_dim
    scale = tf.Variable(1.0)
    constant = likelihood_of(answer=lambda z, t, labels: scale * tf.ones_like(z))
    found = []
    for value in (1.0, 3.0):
        scale.assign(value)
        found.append(constant(batches_of(4), strata=8).bits_per_dim)
    assert found[0] == found[1]


def test_finished_batches_are_gone_on_from_and_images_must_be_of_8_bits(likelihood, tmp_path):
    ledger = Ledger(tmp_path, {"strata": 8})
    batches = batches_of(8)
    likelihood(batches[:1], strata=8, ledger=ledger)
    checks = []
    resumed = likelihood(batches, strata=8, ledger=ledger, check=lambda: checks.append(1))
    straight = likelihood(batches, strata=8)
    assert resumed.bits_per_dim == straight.bits_per_dim and len(checks) == 9  # of one batch
    x, labels, places = batches[0]
    with pytest.raises(UserError, match="between the 256 levels"):
        likelihood([(x + 0.001, labels, places)], strata=8)
