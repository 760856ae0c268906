"""The metrics of a set of images against a reference: one table, each value with its standard error."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pdm_tf.evaluation.distances import (
    Manifold,
    Moments,
    density_coverage,
    frechet_distance,
    frechet_error,
    inception_score,
    kernel_distance,
    precision_recall,
)
from pdm_tf.evaluation.features import Detector, Features
from pdm_tf.evaluation.references import Reference

GROUPS = 10  # of the jackknife


class Measurement(NamedTuple):
    """A value of a metric.

    Attributes:
      error: its standard error; None where there is none.
      spread: the standard deviation over splits of the images, of the inception score alone.
    """

    value: float
    error: float | None = None
    spread: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """{"value", "error"}, and "spread" where there is one."""
        pair = {"value": self.value, "error": self.error}
        return pair if self.spread is None else {**pair, "spread": self.spread}

    def __str__(self) -> str:
        text = f"{self.value:.4g}"
        if self.error is not None:
            text += f" ± {self.error:.2g}"
        return text if self.spread is None else f"{text} (spread {self.spread:.2g})"


class Pair:
    """The features of a set of images beside a reference; what several metrics use is computed once."""

    def __init__(self, features: Features, reference: Reference, manifold: Callable[[], Manifold]):
        """`manifold` gives that of the reference's features."""
        self.features = features
        self.reference = reference
        self._manifold = manifold

    @property
    def available(self) -> set[str]:
        """What both sides have, of the `needs` of `METRICS`."""
        reference = self.reference
        found = {"moments"}
        if self.features.spatial is not None and reference.spatial_moments is not None:
            found.add("spatial")
        if self.features.probabilities is not None:
            found.add("probabilities")
        known = 0 if reference.features is None else len(reference.features)
        if min(len(self.features.pooled), known) > GROUPS:
            found.add("neighbours")
        return found

    @functools.cached_property
    def precision_recall(self) -> tuple[Measurement, ...]:
        found = precision_recall(self._manifold(), self.features.pooled, groups=GROUPS)
        return tuple(Measurement(*pair) for pair in found)

    @functools.cached_property
    def density_coverage(self) -> tuple[Measurement, ...]:
        found = density_coverage(self._manifold(), self.features.pooled, groups=GROUPS)
        return tuple(Measurement(*pair) for pair in found)


class Metric(NamedTuple):
    """A row of `METRICS`: a name, for which a detector may have a title of its own, and the function.

    `needs` is "moments" (always there), "spatial" features, "probabilities", or "neighbours": the features of
    more than `GROUPS` images on both sides.
    """

    name: str
    needs: str
    measure: Callable[[Pair], Measurement]


def _frechet(reference: Moments, features: np.ndarray) -> Measurement:
    value = frechet_distance(reference, Moments.of(features))
    error = frechet_error(reference, features, GROUPS) if len(features) >= GROUPS else None
    return Measurement(value, error)


def _inception_score(pair: Pair) -> Measurement:
    value, spread = inception_score(pair.features.probabilities)
    return Measurement(value, spread=spread)


METRICS = (
    Metric("frechet", "moments", lambda pair: _frechet(pair.reference.moments, pair.features.pooled)),
    Metric(
        "spatial", "spatial", lambda pair: _frechet(pair.reference.spatial_moments, pair.features.spatial)
    ),
    Metric("inception_score", "probabilities", _inception_score),
    Metric(
        "kernel",
        "neighbours",
        lambda pair: Measurement(*kernel_distance(pair.features.pooled, pair.reference.features)),
    ),
    Metric("precision", "neighbours", lambda pair: pair.precision_recall[0]),
    Metric("recall", "neighbours", lambda pair: pair.precision_recall[1]),
    Metric("density", "neighbours", lambda pair: pair.density_coverage[0]),
    Metric("coverage", "neighbours", lambda pair: pair.density_coverage[1]),
)


class Comparison:
    """Measures sets of images by one detector against one reference, whose neighbours are found once."""

    def __init__(self, detector: Detector, reference: Reference):
        self.detector = detector
        self.reference = reference
        self._manifold = functools.cache(lambda: Manifold(reference.features))

    def measure(self, features: Features) -> dict[str, Measurement]:
        """All of `METRICS` that the detector and the reference allow, by their titles."""
        pair = Pair(features, self.reference, self._manifold)
        available = pair.available
        return {
            self.detector.title(metric.name): metric.measure(pair)
            for metric in METRICS
            if metric.needs in available
        }

    def distances(self, pooled: np.ndarray) -> dict[str, float]:
        """The Fréchet and the kernel distance of features float (N, D), by their titles, without errors."""
        return {
            self.detector.title("frechet"): frechet_distance(self.reference.moments, Moments.of(pooled)),
            self.detector.title("kernel"): kernel_distance(pooled, self.reference.features)[0],
        }
