"""Distances against closed forms, brute force, and ADM's formulas in the plainest NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from pdm_tf.evaluation import distances
from pdm_tf.evaluation.distances import (
    Manifold,
    Moments,
    frechet_distance,
    frechet_error,
    inception_score,
    kernel_distance,
    nearest,
    neighbour_metrics,
)

RNG = np.random.default_rng


def features(count: int, dimension: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, positive, of a mean far from 0: as pooled features are."""
    rng = RNG(seed)
    mix = RNG(99).normal(size=(dimension, dimension)) / dimension**0.5
    return np.maximum(rng.normal(size=(count, dimension)) @ mix + 0.5 + shift, 0).astype(np.float32)


# --- moments -------------------------------------------------------------------------------------


def test_moments_in_blocks_are_numpy_s_of_all_rows():
    rows = features(1000, 7, seed=0) + 1e4  # a mean that drowns sums of raw squares in float32
    moments = Moments.of(rows[:1]) + Moments.of(rows[1:300]) + Moments.of(rows[300:])
    whole = rows.astype(np.float64)
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, whole.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.covariance, np.cov(whole, rowvar=False), rtol=1e-10)
    np.testing.assert_allclose(Moments.of(rows).covariance, moments.covariance, rtol=1e-10)


# --- Fréchet distance ----------------------------------------------------------------------------


def test_the_frechet_distance_is_that_of_a_general_matrix_root():
    a, b = Moments.of(features(400, 12, seed=0)), Moments.of(features(500, 12, seed=1, shift=0.2))
    step = a.mean - b.mean
    root = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance)).real.sum()
    expected = step @ step + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_gaussians_with_common_axes_is_the_closed_form():
    rng = RNG(0)
    axes = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    a, b = rng.uniform(0, 3, 30) ** 4, rng.uniform(0, 3, 30) ** 4
    a[:5] = b[3:9] = 0  # ranks 25 and 24
    mean = rng.normal(size=30)
    gaussians = [Moments(None, m, (axes * v) @ axes.T) for m, v in ((mean, a), (-mean, b))]
    expected = 4 * mean @ mean + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(*reversed(gaussians)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("count", [1, 20, 100])
def test_a_set_is_at_no_distance_from_itself_however_few_its_rows(count):
    moments = Moments.of(features(count, 64, seed=0))
    assert abs(frechet_distance(moments, moments)) < 1e-9
    other = Moments.of(features(count, 64, seed=0) + np.float32(0.25))
    assert frechet_distance(moments, other) == pytest.approx(64 * 0.25**2, rel=1e-5)


def test_the_frechet_error_is_the_spread_over_draws():
    reference = Moments.of(features(20_000, 6, seed=0))
    draws = [features(400, 6, seed=seed, shift=0.1) for seed in range(1, 41)]
    spread = np.std([frechet_distance(reference, Moments.of(draw)) for draw in draws], ddof=1)
    errors = [frechet_error(reference, draw) for draw in draws]
    assert 0.75 * spread < np.sqrt(np.mean(np.square(errors))) < 1.35 * spread


# --- kernel distance -----------------------------------------------------------------------------


def brute_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD by loops over pairs."""
    kernel = lambda u, v: (float(u @ v) / len(u) + 1) ** 3  # noqa: E731
    m, n = len(x), len(y)
    within = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within += sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within - 2 * sum(kernel(u, v) for u in x for v in y) / (m * n)


def test_the_kernel_distance_is_the_mean_of_brute_force_over_its_subsets():
    x = features(12, 5, seed=0).astype(float)
    y = features(15, 5, seed=1, shift=0.3).astype(float)
    generator = RNG(0)
    expected = [
        brute_mmd(x[generator.choice(12, 4, replace=False)], y[generator.choice(15, 4, replace=False)])
        for _ in range(20)
    ]
    value, _ = kernel_distance(x, y, subsets=20, subset_size=4)
    assert value == pytest.approx(np.mean(expected), rel=1e-12)
    with pytest.raises(ValueError, match="at least 4 images"):
        kernel_distance(x[:3], y)


@pytest.mark.parametrize("reference_size", [60, 800])
def test_the_kernel_distance_has_no_bias_and_its_error_is_the_spread_over_draws(reference_size):
    """Of normal numbers it has a closed form: k = (xy + 1)^3 compares the first three moments."""
    mean = 0.5  # of the samples; the reference's is -mean, so that both sides add as much to the error
    exact = 3 * (2 * mean) ** 2 + 4 * (mean**3 + 3 * mean) ** 2
    found = []
    for seed in range(200):
        rng = RNG(seed)
        samples = rng.normal(mean, size=(60, 1))
        found.append(kernel_distance(samples, rng.normal(-mean, size=(reference_size, 1)), subsets=50))
    values, errors = np.array(found).T
    spread = values.std(ddof=1)
    assert abs(values.mean() - exact) < 4 * spread / len(values) ** 0.5
    assert 0.8 * spread < np.sqrt(np.mean(errors**2)) < 1.25 * spread


# --- Inception score -----------------------------------------------------------------------------


def adm_inception_score(probabilities: np.ndarray, split: int) -> float:
    """ADM's formula, of probabilities that are not zero."""
    scores = []
    for start in range(0, len(probabilities), split):
        part = probabilities[start : start + split]
        kl = part * (np.log(part) - np.log(part.mean(axis=0, keepdims=True)))
        scores.append(np.exp(kl.sum(axis=1).mean()))
    return float(np.mean(scores))


def test_the_inception_score_has_its_ends_and_is_adm_s():
    assert inception_score(np.full((70, 10), 0.1)) == (pytest.approx(1.0), None)
    assert inception_score(np.tile(np.eye(10, dtype=np.float32), (7, 1)))[0] == pytest.approx(10.0)
    logits = RNG(0).normal(size=(230, 12)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    score, spread = inception_score(p, split=100)
    assert score == pytest.approx(adm_inception_score(p, 100), rel=1e-12)
    assert spread == pytest.approx(np.std([inception_score(p[s : s + 100])[0] for s in (0, 100, 200)]))
    ordered = p[p.argmax(axis=1).argsort(kind="stable")]
    assert inception_score(ordered, split=100)[0] < score, "splits are in file order"


# --- neighbours ----------------------------------------------------------------------------------


def brute_squared(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.square(x[:, None].astype(float) - y[None].astype(float)).sum(axis=-1)


def brute_radii(x: np.ndarray, k: int) -> np.ndarray:
    squared = brute_squared(x, x)
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, k - 1]


def shares(found):
    """What was found, without its errors."""
    return tuple(value for value, _ in found)


@pytest.mark.parametrize("block", [7, 1000])
def test_what_neighbours_tell_is_brute_force_s(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    reference, samples = features(150, 8, seed=0), features(110, 8, seed=1, shift=0.35)
    squared = brute_squared(reference, samples)
    expected_precision = (squared <= brute_radii(reference, 3)[:, None]).any(axis=0).mean()
    expected_recall = (squared <= brute_radii(samples, 3)[None]).any(axis=1).mean()
    inside = squared < brute_radii(reference, 5)[:, None]
    precision, recall, density, coverage = shares(neighbour_metrics(Manifold(reference), samples))
    assert all(0.05 < share < 0.95 for share in (precision, recall, density, coverage))
    assert (precision, recall) == (expected_precision, expected_recall)
    assert density == pytest.approx(inside.sum() / (5 * 110))
    assert coverage == inside.any(axis=1).mean()
    assert shares(neighbour_metrics(Manifold(samples), reference))[:2] == (recall, precision)
    assert neighbour_metrics(Manifold(reference), reference)[3] == (1.0, 0.0)


@pytest.mark.parametrize("block", [7, 1000])
def test_the_nearest_rows_are_brute_force_s_and_copies_lie_at_exactly_nothing(block, monkeypatch):
    monkeypatch.setattr(distances, "BLOCK", block)
    x, y = features(50, 6, seed=0), features(80, 6, seed=1)
    x[4], x[7] = y[61], y[3]
    index, distance = nearest(x, y)
    squared = brute_squared(x, y)
    np.testing.assert_array_equal(index, squared.argmin(axis=1))
    np.testing.assert_allclose(distance, np.sqrt(squared.min(axis=1)), rtol=1e-12)
    assert distance[4] == distance[7] == 0.0 and np.count_nonzero(distance) == 48


def test_rows_of_one_image_are_no_evidence_of_their_own():
    rng = np.random.default_rng(0)
    reference = Moments.of(rng.normal(size=(500, 4)))
    images = rng.normal(0.3, size=(100, 4))
    rows = np.repeat(images, 4, axis=0)
    error = frechet_error(reference, images)
    assert frechet_error(reference, rows, together=4) == pytest.approx(error, rel=0.02)
    assert frechet_error(reference, rows) < 0.7 * error
