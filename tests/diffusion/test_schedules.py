"""Schedules against their definitions and the paper's numbers."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.schedules import at, linear_schedule, logsnr_timesteps, strided_timesteps

FULL = linear_schedule()


def test_alpha_is_the_cumulative_product_of_one_minus_a_linear_beta():
    product, steps = 1.0, 1000
    for t in range(steps):
        product *= 1.0 - (1e-4 + (0.02 - 1e-4) * t / (steps - 1))
        assert FULL.alpha[t] == pytest.approx(product, rel=1e-12)
    assert linear_schedule(beta_end=0.025).beta[-1] == pytest.approx(0.025, rel=1e-12)


def test_snr_is_a_quarter_at_index_396():
    assert int(np.argmin(np.abs(FULL.snr - 0.25))) == 396
    assert FULL.snr[396] == pytest.approx(0.25, abs=2e-3)


def test_rates_are_variance_preserving():
    np.testing.assert_allclose(FULL.signal_rate**2 + FULL.noise_rate**2, 1.0, rtol=1e-14)
    np.testing.assert_allclose(FULL.snr, (FULL.signal_rate / FULL.noise_rate) ** 2, rtol=1e-12)


def test_tables_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        FULL.alpha[0] = 0.5


def test_log_beta_tilde_repeats_its_second_entry_where_beta_tilde_is_zero():
    assert FULL.beta_tilde[0] == 0.0
    assert FULL.log_beta_tilde[0] == FULL.log_beta_tilde[1]
    np.testing.assert_allclose(np.exp(FULL.log_beta_tilde[1:]), FULL.beta_tilde[1:], rtol=1e-12)
    assert np.isfinite(FULL.keep([500]).log_beta_tilde).all()


@pytest.mark.parametrize("sections", [(250,), (1000,), (7,), (90, 60, 60, 20, 20), (10, 20, 30), (3, 1)])
def test_strided_timesteps_keep_what_was_asked(sections):
    kept = strided_timesteps(1000, sections)
    assert len(kept) == sum(sections) and np.all(np.diff(kept) > 0)
    assert kept[0] == 0 and kept[-1] == 999
    bounds = np.linspace(0, 1000, len(sections) + 1)
    for count, low, high in zip(sections, bounds, bounds[1:]):
        assert np.sum((kept >= np.ceil(low)) & (kept < high)) == pytest.approx(count, abs=1)


def test_even_spacing_keeps_both_ends():
    kept = strided_timesteps(1000, (250,))
    assert kept[-1] == 999 and set(np.diff(kept)) <= {4, 5}


def test_a_single_step_starts_where_sampling_starts():
    np.testing.assert_array_equal(strided_timesteps(1000, (1,)), [999])
    np.testing.assert_array_equal(strided_timesteps(1000, (1, 1)), [0, 999])
    np.testing.assert_array_equal(strided_timesteps(2, (1, 1)), [0, 1])


@pytest.mark.parametrize("count", [1, 2, 5, 20, 250, 999, 1000])
def test_logsnr_timesteps_are_as_many_as_asked_and_reach_pure_noise(count):
    kept = logsnr_timesteps(FULL, count)
    assert len(kept) == count and np.all(np.diff(kept) > 0) and kept[-1] == 999
    assert count == 1 or kept[0] == 0


def test_logsnr_timesteps_are_evenly_spaced_in_log_snr():
    # Where the schedule is finer than the spacing (beyond t = 30), to within its own steps.
    kept = logsnr_timesteps(FULL, 20)
    log_snr = np.log(FULL.snr)
    spacing = -np.diff(log_snr[kept])
    coarseness = np.maximum(-np.diff(log_snr)[np.minimum(kept[1:], 998)], -np.diff(log_snr)[kept[:-1]])
    wanted = (log_snr[0] - log_snr[-1]) / 19
    assert np.all(np.abs(spacing - wanted) <= coarseness + 1e-9), (spacing, wanted, coarseness)
    even = -np.diff(log_snr[strided_timesteps(1000, (20,))])
    assert spacing.std() < 0.25 * even.std()


def test_logsnr_timesteps_of_a_strided_schedule_are_its_own():
    strided = FULL.keep([3, 50, 100, 400, 700, 999])
    assert set(logsnr_timesteps(strided, 3)) <= {3, 50, 100, 400, 700, 999}


@pytest.mark.parametrize("count", [0, 1001])
def test_impossible_numbers_of_logsnr_timesteps_are_refused(count):
    with pytest.raises(ValueError, match="cannot keep"):
        logsnr_timesteps(FULL, count)


@pytest.mark.parametrize("sections", [(1001,), (0,), (201, 1, 1, 1, 1)])
def test_impossible_sections_are_refused(sections):
    with pytest.raises(ValueError, match="cannot keep"):
        strided_timesteps(1000, sections)


@pytest.mark.parametrize("kept", [[], [3, 3], [5, 4], [1000], [-1]])
def test_impossible_subsets_are_refused(kept):
    with pytest.raises(ValueError, match="ascend strictly"):
        FULL.keep(kept)


def test_a_strided_schedule_has_the_full_ones_marginals_and_composed_transitions():
    kept = [0, 10, 500, 999]
    strided = FULL.keep(kept)
    np.testing.assert_array_equal(strided.alpha, FULL.alpha[kept])
    for i, (s, t) in enumerate(zip(kept, kept[1:]), 1):
        assert 1 - strided.beta[i] == pytest.approx(np.prod(1 - FULL.beta[s + 1 : t + 1]), rel=1e-9)


def test_at_gathers_and_broadcasts_over_images():
    table = np.array([0.1, 0.2, 0.3])
    batch = at(table, tf.constant([2, 0]), tf.float64)
    assert batch.shape == (2, 1, 1, 1) and batch.dtype == tf.float64
    np.testing.assert_array_equal(tf.squeeze(batch), [0.3, 0.1])
    assert at(table, tf.constant(1)).shape == ()
