"""The metrics of a set of images against a reference: one table, each value with its standard error."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pdm_tf.evaluation.distances import (
    GROUPS,
    Manifold,
    Moments,
    frechet_distance,
    frechet_error,
    inception_score,
    kernel_distance,
    neighbour_metrics,
)
from pdm_tf.evaluation.features import Detector, Features
from pdm_tf.evaluation.references import Reference


class Measurement(NamedTuple):
    """A value of a metric."""

    value: float
    error: float | None = None  # its standard error
    spread: float | None = None  # the standard deviation over splits of the images, of the inception score

    @classmethod
    def mean_of(cls, values: np.ndarray | Sequence[float]) -> Measurement:
        """The mean of values (N,), and its standard error; None of one."""
        error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        return cls(float(np.mean(values)), error)

    def to_json(self) -> dict[str, float | None]:
        """{"value", "error"}, and "spread" where there is one."""
        pair = {"value": self.value, "error": self.error}
        return pair if self.spread is None else {**pair, "spread": self.spread}

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        if self.error is not None:
            text += f" ± {self.error:.2g}"
        return text if self.spread is None else f"{text} (spread {self.spread:.2g})"


class Metric(NamedTuple):
    """A row of `METRICS`."""

    names: Sequence[str]  # of the values that `measure` gives; a detector may have titles for them
    # "moments" (always there), "spatial" features, "probabilities", or "neighbours": the features of more
    # than `GROUPS` images on both sides.
    needs: str
    measure: Callable[[Comparison, Features], Sequence[tuple]]  # fields of `Measurement`, for each name


class Comparison:
    """Measures sets of images by one detector against one reference, whose neighbours are found once."""

    def __init__(self, detector: Detector, reference: Reference):
        self.detector = detector
        self.reference = reference

    @functools.cached_property
    def manifold(self) -> Manifold:
        """That of the reference's features."""
        return Manifold(self.reference.features)

    def measure(self, features: Features) -> dict[str, Measurement]:
        """All of `METRICS` that the detector and the reference allow, by their titles."""
        known = 0 if self.reference.features is None else len(self.reference.features)
        available = {
            "moments": True,
            "spatial": features.spatial is not None and self.reference.spatial_moments is not None,
            "probabilities": features.probabilities is not None,
            # Squares of one image are no neighbours by chance.
            "neighbours": min(len(features.pooled), known) > GROUPS and self.detector.rows == 1,
        }
        found = {}
        for metric in METRICS:
            if available[metric.needs]:
                for name, values in zip(metric.names, metric.measure(self, features)):
                    found[self.detector.title(name)] = Measurement(*values)
        return found

    def distances(self, pooled: np.ndarray) -> dict[str, float]:
        """The Fréchet and the kernel distance of features float (N, D), by their titles, without errors."""
        return {
            self.detector.title("frechet"): frechet_distance(self.reference.moments, Moments.of(pooled)),
            self.detector.title("kernel"): kernel_distance(pooled, self.reference.features)[0],
        }


def _frechet(comparison: Comparison, reference: Moments, features: np.ndarray) -> list[tuple]:
    together = comparison.detector.rows
    enough = len(features) // together >= GROUPS
    error = frechet_error(reference, features, together) if enough else None
    return [(frechet_distance(reference, Moments.of(features)), error)]


def _inception_score(comparison: Comparison, features: Features) -> list[tuple]:
    value, spread = inception_score(features.probabilities)
    return [(value, None, spread)]


NEAR = ("precision", "recall", "density", "coverage")
METRICS = (
    Metric(["frechet"], "moments", lambda c, f: _frechet(c, c.reference.moments, f.pooled)),
    Metric(["spatial"], "spatial", lambda c, f: _frechet(c, c.reference.spatial_moments, f.spatial)),
    Metric(["inception_score"], "probabilities", _inception_score),
    Metric(["kernel"], "neighbours", lambda c, f: [kernel_distance(f.pooled, c.reference.features)]),
    Metric(NEAR, "neighbours", lambda c, f: neighbour_metrics(c.manifold, f.pooled)),
)
