"""Schedules against their definitions and the papers' numbers, and the levels that are taken from them."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.config.words import leaves
from pdm_tf.diffusion.schedules import (
    SCHEDULES,
    Level,
    cosine,
    linear,
    logsnr_timesteps,
    shifted_cosine,
    strided_timesteps,
)

FULL = linear()


def test_alpha_is_the_cumulative_product_of_one_minus_a_linear_beta():
    product, steps = 1.0, 1000
    for t in range(steps):
        product *= 1.0 - (1e-4 + (0.02 - 1e-4) * t / (steps - 1))
        assert FULL.alpha[t] == pytest.approx(product, rel=1e-12)
    assert linear(beta_end=0.025).beta[-1] == pytest.approx(0.025, rel=1e-12)


def test_log_beta_tilde_repeats_its_second_entry_where_beta_tilde_is_zero():
    assert FULL.beta_tilde[0] == 0.0
    assert FULL.log_beta_tilde[0] == FULL.log_beta_tilde[1]
    np.testing.assert_allclose(np.exp(FULL.log_beta_tilde[1:]), FULL.beta_tilde[1:], rtol=1e-12)
    assert np.isfinite(FULL.respaced([500]).log_beta_tilde).all()


@pytest.mark.parametrize("sections", [(250,), (90, 60, 60, 20, 20)])
def test_strided_timesteps_are_as_many_as_asked_in_each_section(sections):
    timesteps = strided_timesteps(1000, sections)
    assert len(timesteps) == sum(sections) and np.all(np.diff(timesteps) > 0)
    assert timesteps[0] == 0 and timesteps[-1] == 999
    bounds = np.linspace(0, 1000, len(sections) + 1)
    for count, low, high in zip(sections, bounds, bounds[1:]):
        assert np.sum((timesteps >= np.ceil(low)) & (timesteps < high)) == pytest.approx(count, abs=1)


def test_a_single_step_starts_where_sampling_starts():
    np.testing.assert_array_equal(strided_timesteps(1000, (1,)), [999])
    np.testing.assert_array_equal(strided_timesteps(1000, (1, 1)), [0, 999])
    np.testing.assert_array_equal(strided_timesteps(2, (1, 1)), [0, 1])


@pytest.mark.parametrize("count", [1, 20, 1000])
def test_logsnr_timesteps_are_as_many_as_asked_and_reach_pure_noise(count):
    timesteps = logsnr_timesteps(FULL, count)
    assert len(timesteps) == count and np.all(np.diff(timesteps) > 0) and timesteps[-1] == 999
    assert count == 1 or timesteps[0] == 0


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


def test_a_strided_schedule_has_the_full_ones_marginals_and_composed_transitions():
    kept = [0, 10, 500, 999]
    strided = FULL.respaced(kept)
    np.testing.assert_array_equal(strided.alpha, FULL.alpha[kept])
    for i, (s, t) in enumerate(zip(kept, kept[1:]), 1):
        assert 1 - strided.beta[i] == pytest.approx(np.prod(1 - FULL.beta[s + 1 : t + 1]), rel=1e-9)


# Of different lengths, spacings and noise; the last keeps one step, whose step before is the data.
SOME = {
    "full": FULL,
    "strided": FULL.respaced(strided_timesteps(1000, (90, 60, 60, 20, 20))),
    "cosine": cosine(300),
    "one step": FULL.respaced([999]),
}


def levels_of(schedule, dtype=tf.float64):
    """The levels of all steps at once."""
    return schedule.at(tf.range(len(schedule)), dtype)


@pytest.mark.parametrize("schedule", SOME.values(), ids=SOME)
def test_levels_equal_the_definitions_computed_in_float64(schedule):
    level, alpha = levels_of(schedule), schedule.alpha
    before = np.concatenate([[1.0], alpha[:-1]])
    beta = 1 - alpha / before
    expected = {
        "signal": np.sqrt(alpha),
        "noise": np.sqrt(1 - alpha),
        "snr": alpha / (1 - alpha),
        "root_snr": np.sqrt(alpha / (1 - alpha)),
        "mean_residual": beta / (1 - alpha),
        "mean_scale": 1 / np.sqrt(1 - beta),
        "log_beta": np.log(beta),
        "log_beta_tilde": schedule.log_beta_tilde,
    }
    assert {field.name for field in dataclasses.fields(level)} == {*expected, "t", "before"}
    for name, values in expected.items():
        np.testing.assert_allclose(np.ravel(getattr(level, name)), values, rtol=1e-14, err_msg=name)
    np.testing.assert_array_equal(level.t, schedule.timesteps)
    np.testing.assert_allclose(level.signal**2 + level.noise**2, 1.0, rtol=1e-14)


@pytest.mark.parametrize("schedule", SOME.values(), ids=SOME)
def test_the_level_before_a_step_is_that_of_the_step_before(schedule):
    level = levels_of(schedule)
    for field in dataclasses.fields(Level):
        here, before = (np.ravel(getattr(one, field.name)) for one in (level, level.before))
        np.testing.assert_array_equal(before[1:], here[:-1])
    # Before the first step lies the data, which nothing was added to.
    data = schedule.at(0).before
    assert (int(data.t), float(data.signal), float(data.noise), float(data.snr)) == (-1, 1.0, 0.0, math.inf)


@pytest.mark.parametrize("steps", [1000, 64])
def test_cosine_is_the_papers_formula_with_beta_clipped(steps):
    """beta_t = min(1 - f(t + 1) / f(t), 0.999), f the squared cosine (Nichol & Dhariwal, 2021, Eq. 17)."""

    def f(t):
        return math.cos((t / steps + 0.008) / (1 + 0.008) * math.pi / 2) ** 2

    schedule, product = cosine(steps), 1.0
    for t in range(steps):
        product *= 1 - min(1 - f(t + 1) / f(t), 0.999)
        assert schedule.alpha[t] == pytest.approx(product, rel=1e-9)
        # Until beta is clipped, alpha is the squared cosine itself.
        assert t == steps - 1 or schedule.alpha[t] == pytest.approx(f(t + 1) / f(0), rel=1e-9)
    assert schedule.beta.max() == schedule.beta[-1] == pytest.approx(0.999, rel=1e-9)


@pytest.mark.parametrize("side", [32, 64, 1024])
def test_shifted_cosine_has_the_log_snr_of_simple_diffusion(side):
    """-2 ln tan(pi t / 2) + 2 ln(64 / side), t at the middles of the steps (Hoogeboom et al., 2023)."""
    t = (np.arange(1000) + 0.5) / 1000
    wanted = -2 * np.log(np.tan(math.pi * t / 2)) + 2 * math.log(64 / side)
    np.testing.assert_allclose(2 * shifted_cosine(1000, side).half_log_snr, wanted, atol=1e-8)


@pytest.mark.parametrize(
    "name, unshifted", [("shifted_cosine", "shifted_cosine"), ("shifted_linear", "linear")]
)
def test_an_averaged_image_is_as_noisy_as_one_of_64_pixels(name, unshifted):
    """Averaging k x k pixels divides the noise's variance by k^2, and keeps a constant signal."""
    large, small = SCHEDULES[name](DiffusionConfig(), 256), SCHEDULES[unshifted](DiffusionConfig(), 64)
    noise = np.random.default_rng(0).standard_normal((256, 256)).reshape(64, 4, 64, 4).mean(axis=(1, 3))
    for i in (100, 500, 900):
        averaged = large.alpha[i] / ((1 - large.alpha[i]) * noise.var())
        assert averaged == pytest.approx(small.snr[i], rel=0.1)


def other_values(leaf):
    """Values of a field that are not its default."""
    if leaf.rule.choices:
        return [choice for choice in leaf.rule.choices if choice != leaf.default]
    return {int: [leaf.default + 1], float: [leaf.default / 2 or 0.25]}[leaf.kind]


def test_experts_share_what_decides_the_schedule_and_nothing_else_of_the_process():
    """A field that changed the schedule without being marked would join unlike experts in silence."""
    for key, leaf in leaves(DiffusionConfig).items():
        changes = False
        for name in SCHEDULES:
            plain = DiffusionConfig(schedule=name)
            for value in other_values(leaf):
                d = dataclasses.replace(plain, **{key: value})
                tables = [SCHEDULES[one.schedule](one, 64).alpha for one in (plain, d)]
                changes |= not np.array_equal(*tables)
        assert changes == leaf.rule.shared, key
