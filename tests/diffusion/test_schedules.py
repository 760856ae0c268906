"""Schedules against their definitions and the paper's numbers."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.diffusion.schedules import at, linear_schedule, strided_timesteps

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


@pytest.mark.parametrize("sections", [(250,), (1,), (1000,), (7,), (90, 60, 60, 20, 20), (10, 20, 30)])
def test_strided_timesteps_keep_what_was_asked(sections):
    kept = strided_timesteps(1000, sections)
    assert len(kept) == sum(sections) and np.all(np.diff(kept) > 0)
    assert kept[0] == 0 and kept[-1] <= 999
    bounds = np.linspace(0, 1000, len(sections) + 1)
    for count, low, high in zip(sections, bounds, bounds[1:]):
        assert np.sum((kept >= np.ceil(low)) & (kept < high)) == pytest.approx(count, abs=1)


def test_even_spacing_keeps_both_ends():
    kept = strided_timesteps(1000, (250,))
    assert kept[-1] == 999 and set(np.diff(kept)) <= {4, 5}


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
