"""Time and peak memory of each distance, of random features of the size of a paper's evaluation.

    python -m benchmarks.distances [--count=50000] [--dimension=2048] [--only=frechet ...]

The peak is that of NumPy's arrays, beside the features of both sides.
"""

from __future__ import annotations

import argparse
import os
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from pdm_tf.evaluation import distances
from pdm_tf.evaluation.distances import Manifold, Moments

CLASSES = 1008


def random_features(count: int, dimension: int, seed: int) -> np.ndarray:
    """Float32 (N, D), positive and of falling variance, made in blocks."""
    generator = np.random.default_rng(seed)
    features = np.empty((count, dimension), np.float32)
    scale = np.geomspace(1.0, 0.01, dimension, dtype=np.float32)
    for start in range(0, count, 5000):
        rows = features[start : start + 5000]
        rows[:] = np.abs(generator.standard_normal(rows.shape, np.float32)) * scale
    return features


def probabilities(features: np.ndarray) -> np.ndarray:
    """Float32 (N, 1008), rows that sum to 1."""
    result = np.abs(features[:, : min(CLASSES, features.shape[1])]) + 1e-3
    return result / result.sum(axis=1, keepdims=True)


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "moments": lambda x, y: Moments.of(x).count,
    "frechet": lambda x, y: distances.frechet_distance(Moments.of(x), Moments.of(y)),
    "frechet_error": lambda x, y: distances.frechet_error(Moments.of(x), y),
    "kernel": distances.kernel_distance,
    "inception_score": lambda x, y: distances.inception_score(probabilities(y))[0],
    "manifold": lambda x, y: Manifold(x[:10_000]).squared_radii[3].mean(),
    "neighbours": lambda x, y: distances.neighbour_metrics(Manifold(x[:10_000]), y),
    "nearest": lambda x, y: distances.nearest(x[:10_000], y)[1].mean(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--only", nargs="+", choices=list(DISTANCES), default=list(DISTANCES))
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(
        f"NumPy {np.__version__}, {cores} cores (load before: {os.getloadavg()[0]:.1f}), "
        f"N = {arguments.count} on both sides, D = {arguments.dimension}; neighbours: a reference of 10,000"
    )
    sides = [random_features(arguments.count, arguments.dimension, seed) for seed in (0, 1)]
    for name in arguments.only:
        tracemalloc.start()
        begin = time.perf_counter()
        value = DISTANCES[name](*sides)
        seconds = time.perf_counter() - begin
        peak = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
        shown = ", ".join(f"{number:.6g}" for number in np.ravel(value))
        print(f"{name:22} {seconds:8.1f} s {peak:8.0f} MiB   {shown}", flush=True)


if __name__ == "__main__":
    main()
