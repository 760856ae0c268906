"""Distances between two sets of images, from their features; NumPy alone, float64 where it counts.

Features, of any network, are float32 (N, D), one row an image. Large sets are worked through in blocks of
rows: the memory beside the features is that of a few (D, D) matrices or of a few blocks of distances.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 2500  # rows at once: 2,500 x 2,500 float32 distances are 25 MB
MOMENTS_BLOCK = 8192  # more at once would need more memory, and be no faster
INCEPTION_SCORE_SPLIT = 5000  # images, as in ADM's evaluator
NEIGHBOURS = (3, 5)  # k of precision and recall, and of density and coverage
GROUPS = 10  # of the jackknife
FEWEST_OF_KERNEL = 4  # images a side, for subsets of two


# --- Fréchet distance ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of features, float64; of two sets they add up (Chan, Golub and LeVeque 1979)."""

    count: int | None  # N; None where a file that holds only a mean and a covariance does not say it
    mean: np.ndarray  # (D,)
    scatter: np.ndarray  # (D, D), N - 1 times the covariance; the covariance itself where N is not known

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """The moments of float (N, D), N > 0."""
        total = NO_MOMENTS
        for start in range(0, len(features), MOMENTS_BLOCK):
            block = np.asarray(features[start : start + MOMENTS_BLOCK], np.float64)
            mean = block.mean(axis=0)
            centred = block - mean
            total += cls(len(block), mean, centred.T @ centred)
        return total

    def __add__(self, other: Moments) -> Moments:
        """The moments of all rows of two sets."""
        count = self.count + other.count
        step = other.mean - self.mean
        between = np.outer(step * (self.count * other.count / count), step)
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    @property
    def covariance(self) -> np.ndarray:
        """(D, D); zero for a single row."""
        return self.scatter if self.count is None else self.scatter / max(1, self.count - 1)


NO_MOMENTS = Moments(0, np.zeros(1), np.zeros(1))  # those of no rows, to add others to


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Fréchet distance of the Gaussians of two sets (Dowson and Landau 1982; FID: Heusel et al. 2017).

        |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))

    The trace of the root is the sum of the roots of the eigenvalues of R' S_b R, where S_a = R R' has fewer
    rows: symmetric problems, accurate for any covariance (to about 1e-8), with nothing added to the diagonal.

    Expect it to be too large by about a constant / N: compare only numbers of equal N.
    """
    if (b.count or np.inf) < (a.count or np.inf):
        a, b = b, a
    return _frechet(_root(a.covariance), a, b)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R (D, r) with R R' = covariance, of its r eigenvalues that are not zero in float64."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _frechet(root_a: np.ndarray, a: Moments, b: Moments) -> float:
    """`frechet_distance`, with the root of a's covariance at hand."""
    covariance = b.covariance
    eigenvalues = np.linalg.eigvalsh(root_a.T @ covariance @ root_a)
    root_trace = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    step = a.mean - b.mean
    # |R|^2 is the trace of a's covariance.
    return float(step @ step + np.square(root_a).sum() + np.trace(covariance) - 2.0 * root_trace)


def frechet_error(reference: Moments, samples: np.ndarray, together: int = 1) -> float:
    """The standard error of `frechet_distance(reference, Moments.of(samples))` over draws of the samples.

    A delete-a-group jackknife: sqrt((g - 1) / g * sum_i (d_i - mean d)^2), d_i being the distance without the
    i-th of g equal groups at random. All d_i have equal numbers of samples, so the distance's bias, which
    depends on N, is not part of the error; nor is the chance of the reference, or of another training.

    Args:
      samples: float (N, D), N / `together` >= `GROUPS`.
      together: rows, one after another, that are of one image, and so in one group.
    """
    images = samples.reshape([-1, together, samples.shape[1]])
    order = np.random.default_rng(0).permutation(len(images))
    parts = [
        Moments.of(images[np.sort(chosen)].reshape([-1, samples.shape[1]]))
        for chosen in np.array_split(order, GROUPS)
    ]
    root = _root(reference.covariance)
    without = [sum(parts[:i] + parts[i + 1 :], NO_MOMENTS) for i in range(GROUPS)]
    return _jackknife(np.array([_frechet(root, reference, moments) for moments in without]))


# --- kernel distance -----------------------------------------------------------------------------


def kernel_distance(
    x: np.ndarray, y: np.ndarray, subsets: int = 100, subset_size: int = 1000
) -> tuple[float, float]:
    """The kernel distance (KID: Binkowski et al. 2018) of float (n, D) and (M, D), and its standard error.

    The unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, averaged over random
    subsets of m = `subset_size` rows (half of the smaller set at most) of both sides. Two sets of one kind
    give 0 on average, and may give less.

    The standard error is over draws of both sides, from the spread s over the subsets, which overlap:
    s * sqrt((1/n + 1/M) / (2/m - 1/n - 1/M) + 1/subsets).
    """
    smaller = min(len(x), len(y))
    if smaller < FEWEST_OF_KERNEL:
        raise ValueError(
            f"a kernel distance needs at least {FEWEST_OF_KERNEL} images a side, and these are {smaller}"
        )
    size = min(subset_size, smaller // 2)
    generator = np.random.default_rng(0)
    values = []
    for _ in range(subsets):
        rows_x = generator.choice(len(x), size, replace=False)
        rows_y = generator.choice(len(y), size, replace=False)
        values.append(_unbiased_mmd(x[rows_x], y[rows_y]))
    of_sets = 1.0 / len(x) + 1.0 / len(y)
    error = np.std(values, ddof=1) * np.sqrt(of_sets / (2.0 / size - of_sets) + 1.0 / subsets)
    return float(np.mean(values)), float(error)


def _unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """MMD^2 of (m, D) and (m, D): the mean kernel of different rows of one side, less that across, twice."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def kernel(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        values = u @ v.T / u.shape[1] + 1.0
        return values * values * values

    def within(u: np.ndarray) -> float:
        values = kernel(u, u)
        return (values.sum() - np.trace(values)) / (len(u) * (len(u) - 1))

    return within(x) + within(y) - 2.0 * kernel(x, y).mean()


# --- Inception score -----------------------------------------------------------------------------


def inception_score(
    probabilities: np.ndarray, split: int = INCEPTION_SCORE_SPLIT
) -> tuple[float, float | None]:
    """exp(mean KL(p(k | image) || p(k))) (Salimans et al. 2016): mean and standard deviation over splits.

    Splits are `split` consecutive images, as in ADM's evaluator; the last may be smaller, and counts like the
    others. Of one split there is no deviation: None. `probabilities`: float (N, K), rows sum to 1.
    """
    scores = []
    for start in range(0, len(probabilities), split):
        part = np.asarray(probabilities[start : start + split], np.float64)
        # A class without probability adds nothing: p log p -> 0.
        ratio = np.divide(part, part.mean(axis=0), out=np.ones_like(part), where=part > 0)
        scores.append(np.exp((part * np.log(ratio)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores)) if len(scores) > 1 else None


# --- neighbours ----------------------------------------------------------------------------------


class Manifold:
    """Features with a ball around each row, which reaches to its k-th nearest other row."""

    def __init__(self, features: np.ndarray):
        """Finds the balls of float (N, D), N > k."""
        # Around the mean squares cancel least.
        self.origin = features.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.features = self.centred(features)
        self.squared_radii = _squared_radii(self.features, NEIGHBOURS)  # k -> float32 (N,)

    def centred(self, samples: np.ndarray) -> np.ndarray:
        """Other features, float (M, D), less this set's mean, float32."""
        return np.subtract(samples, self.origin, dtype=np.float32)


def neighbour_metrics(reference: Manifold, samples: np.ndarray) -> list[tuple[float, float]]:
    """Precision, recall, density and coverage of samples, float (M, D), each with its standard error.

    Precision is the share of the samples that lie in a ball of the reference, recall the share of the
    reference in a ball of the samples (Kynkäänniemi et al. 2019; k = 3). Both depend on the numbers of images
    on both sides. Density is the number of balls of the reference that a sample lies in, divided by k, on
    average (it may exceed 1), coverage the share of the reference's balls that hold a sample (Naeem et al.
    2020; k = 5): one odd image of the reference hardly moves them.

    The standard errors are over draws of the samples, by a jackknife over groups, as in `frechet_error`. The
    samples' balls stay those of all samples, which makes recall's error a little too large.
    """
    k, wide_k = NEIGHBOURS
    samples = reference.centred(samples)
    radii, wide_radii = (reference.squared_radii[each] for each in NEIGHBOURS)
    sample_radii = _squared_radii(samples, [k])[k]
    member = _members(len(samples))
    precise = np.zeros(len(samples), bool)
    hits = np.zeros(len(samples), np.int64)
    # How many of each group are near an image of the reference.
    recalled, inside = np.zeros((2, len(radii), member.shape[1]), np.float32)
    for rows, columns, distances in _squared_distances(reference.features, samples):
        precise[columns] |= (distances <= radii[rows, None]).any(axis=0)
        recalled[rows] += (distances <= sample_radii[None, columns]).astype(np.float32) @ member[columns]
        within = distances < wide_radii[rows, None]
        hits[columns] += within.sum(axis=0)
        inside[rows] += within.astype(np.float32) @ member[columns]
    of_samples = [_mean_and_error(values, member) for values in (precise, hits / wide_k)]
    of_reference = [_covered_and_error(counts) for counts in (recalled, inside)]
    return [of_samples[0], of_reference[0], of_samples[1], of_reference[1]]


def _members(count: int) -> np.ndarray:
    """float32 (N, `GROUPS`): 1 where a sample is in a group, at random, all of equal size; 0 elsewhere."""
    member = np.zeros((count, GROUPS), np.float32)
    member[np.random.default_rng(0).permutation(count), np.arange(count) % GROUPS] = 1.0
    return member


def _mean_and_error(values: np.ndarray, member: np.ndarray) -> tuple[float, float]:
    """The mean of each sample's number (N,), and its error by leaving out one group after the other."""
    member = member.astype(np.float64)
    left = (values.sum() - values @ member) / (len(values) - member.sum(axis=0))
    return float(values.mean()), _jackknife(left)


def _covered_and_error(counts: np.ndarray) -> tuple[float, float]:
    """The share of rows with a count at all, of counts by group (M, G), and its error likewise."""
    total = counts.sum(axis=1)
    return float((total > 0).mean()), _jackknife((total[:, None] - counts > 0).mean(axis=0))


def _jackknife(left: np.ndarray) -> float:
    """The standard error of a number from its values (G,) without each of G groups."""
    return float(np.sqrt((len(left) - 1) * np.var(left)))


def nearest(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest row of (M, D) to each row of float (N, D): int64 (N,), and the distances, float64 (N,).

    The distances of the pairs found are computed from their differences: that of two equal rows is 0.
    """
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)  # around it squares cancel least
    centred_x = np.subtract(x, mean, dtype=np.float32)
    centred_y = np.subtract(y, mean, dtype=np.float32)
    index = np.zeros(len(x), np.int64)
    smallest = np.full(len(x), np.inf, np.float32)
    for rows, columns, distances in _squared_distances(centred_x, centred_y):
        found = distances.argmin(axis=1)
        value = np.take_along_axis(distances, found[:, None], axis=1)[:, 0]
        better = value < smallest[rows]
        index[rows] = np.where(better, found + columns.start, index[rows])
        smallest[rows] = np.where(better, value, smallest[rows])
    distance = np.empty(len(x))
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        distance[rows] = np.linalg.norm(
            np.asarray(x[rows], np.float64) - np.asarray(y[index[rows]], np.float64), axis=1
        )
    return index, distance


def _squared_radii(features: np.ndarray, ks: Sequence[int]) -> dict[int, np.ndarray]:
    """The squared distance of each row of (N, D) to its k-th nearest other row, float32 (N,), of each k."""
    most = max(ks)
    # A row is its own nearest: the k + 1 smallest.
    smallest = np.full((len(features), most + 1), np.inf, np.float32)
    for rows, _, distances in _squared_distances(features, features):
        if distances.shape[1] > most + 1:
            distances = np.partition(distances, most, axis=1)[:, : most + 1]
        both = np.concatenate([smallest[rows], distances], axis=1)
        smallest[rows] = np.partition(both, most, axis=1)[:, : most + 1]
    smallest.sort(axis=1)
    return {k: smallest[:, k].copy() for k in ks}


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """|u|^2 - 2 u.v + |v|^2, at least 0, of the rows of two float32 sets: (rows, columns, float32 block)."""
    norms_x = np.einsum("nd,nd->n", x, x)
    norms_y = np.einsum("nd,nd->n", y, y)
    for i in range(0, len(x), BLOCK):
        rows = slice(i, min(i + BLOCK, len(x)))
        for j in range(0, len(y), BLOCK):
            columns = slice(j, min(j + BLOCK, len(y)))
            distances = x[rows] @ y[columns].T
            distances *= -2.0
            distances += norms_x[rows, None]
            distances += norms_y[columns]
            yield rows, columns, np.maximum(distances, 0.0, out=distances)
