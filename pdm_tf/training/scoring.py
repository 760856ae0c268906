"""Scores of a run's averages as it goes on: distances of their samples, and their held-out bits."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from pdm_tf import data
from pdm_tf.atomic import atomic_json, sha256
from pdm_tf.config.fields import Config
from pdm_tf.denoiser import Denoiser
from pdm_tf.evaluation import references
from pdm_tf.evaluation.distances import FEWEST_OF_KERNEL
from pdm_tf.evaluation.features import extract, load_detector
from pdm_tf.evaluation.image_sets import shared_labels
from pdm_tf.evaluation.likelihood import Likelihood, held_out_batches
from pdm_tf.evaluation.metrics import Comparison
from pdm_tf.training.metrics import MetricsLog
from pdm_tf.training.periodic import Previews

STRATA = 16  # t drawn for each held-out image, besides t = 0


@dataclasses.dataclass
class Scores:
    """A measure of a run's averages; done where the log has its number `name` of a step.

    `previews` has the run's denoiser, averages and strategy; what `check`, called about every second, raises
    ends a score, of which nothing is kept then. A kind of score has its `title` and `name`.
    """

    config: Config
    info: data.DatasetInfo
    previews: Previews
    log: MetricsLog
    check: Callable[[], None]

    def done(self, step: int) -> bool:
        return self.log.has(step, f"validation/{self.name}")


class SampleScores(Scores):
    """Distances between samples of the averaged weights and the training images, with the embedded detector.

    The samples are drawn as previews are, always from the same noise and of the same labels, so that two
    steps differ by their weights alone. The distances are those of few images: they compare steps of a run,
    and not runs of other numbers of images.

    With `training.keep_best` the averages of the smallest Fréchet distance are kept in ema/best.npz, with
    their step and score in ema/best.json. A kill, whenever it comes, changes neither.
    """

    title = "scores"

    def __init__(self, *args):
        super().__init__(*args)
        self.detector = load_detector()
        self.name = self.detector.title("frechet")
        self.best = self._read_best() if self.config.training.keep_best else None

    @staticmethod
    def problem(config: Config, info: data.DatasetInfo, denoiser: Denoiser) -> str:
        """A reason why there are no scores; "" where there are."""
        if denoiser.t_stop - denoiser.t_start < len(denoiser.schedule):
            return "this network alone draws no images: evaluate it together with its other experts"
        if config.data.image_shape[-1] not in (1, 3):
            return "a detector takes images of 1 or 3 channels"
        if info.num_examples["train"] < FEWEST_OF_KERNEL:
            return f"they are distances to {FEWEST_OF_KERNEL} training images at least"
        return ""

    def measure(self, step: int) -> None:
        """Scores the averages of now, and keeps them if they are the best so far."""
        comparison, labels = self._reference
        with self.previews.ema.applied():
            images = self.previews.batches(self.config.training.score_images, labels, "score", self.check)
            values = comparison.distances(extract(self.detector, images).pooled)
        best = self.best[self.name] if self.best else np.inf
        if self.config.training.keep_best and values[self.name] <= best:
            self.previews.ema.save(self.log.run.best_weights)
            digest = sha256(self.log.run.best_weights)
            self.best = {"step": step, **values, **self._conditions(), "weights_sha256": digest}
            atomic_json(self.log.run.best_note, self.best)
        # Last: it marks the score as done.
        self.log.scalars(step, values, prefix="validation/")

    @functools.cached_property
    def _reference(self) -> tuple[Comparison, np.ndarray]:
        """The training images' statistics, and labels of samples in the shares of these images."""
        reference = references.of_split(
            self.detector,
            self.info,
            "train",
            self.config.data.image_shape,
            progress=lambda done: self.check(),
        )
        counts = reference.label_counts or [1]
        labels = shared_labels(counts, self.config.training.score_images, self.config.seed)
        return Comparison(self.detector, reference), labels

    def _conditions(self) -> dict[str, Any]:
        """What two scores must have in common to be compared, as JSON has it."""
        conditions = {
            "images": self.config.training.score_images,
            "seed": self.config.seed,
            "sampling": dataclasses.asdict(self.previews.sampling),
            "detector_sha256": self.detector.sha256,
            "data_sha256": self.info.sha256,
        }
        return json.loads(json.dumps(conditions))

    def _read_best(self) -> dict[str, Any] | None:
        """best.json; None if there is none, or it is not of best.npz, or was measured otherwise."""
        try:
            best = json.loads(self.log.run.best_note.read_text())
            known = {**best, **self._conditions()} == best and np.isfinite(best[self.name])
            return best if known and best["weights_sha256"] == sha256(self.log.run.best_weights) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


class HeldOutBits(Scores):
    """Bits per dimension of held-out images under the averaged weights: an estimate by few t for each.

    The images, at most `training.score_images`, their noise and their t are always the same, so that two
    steps differ by their weights alone. Of a network of an interval of t these are the bits of that interval:
    those of all experts add up to the whole.
    """

    title = "bits per dimension"
    name = "bits_per_dim"

    def __init__(self, *args):
        super().__init__(*args)
        self.split = data.held_out_split(self.info)
        self.count = min(self.config.training.score_images, self.info.num_examples[self.split])
        denoiser = self.previews.denoiser
        self.strata = min(STRATA, denoiser.t_stop - max(denoiser.t_start, 1)) or None
        with self.previews.strategy.scope():
            self.likelihood = Likelihood(denoiser)

    @staticmethod
    def problem(config: Config, info: data.DatasetInfo, denoiser: Denoiser) -> str:
        """A reason why there are no bits; "" where there are."""
        if config.is_student:
            return "a student knows few of the t in them"
        if not data.held_out_split(info):
            return "the data set has no held-out split"
        if info.image_dtype != "uint8" or None in info.image_shape:
            return "they are of images of 8 bits, and these are not, or are resized as they are read"
        return ""

    def measure(self, step: int) -> None:
        batches = held_out_batches(
            self.info, self.split, self.config.data.image_shape, self.previews.batch_size, self.count
        )
        with self.previews.ema.applied():
            found = self.likelihood(batches, seed=self.config.seed, strata=self.strata, check=self.check)
        self.log.scalars(step, {self.name: found.bits_per_dim.value}, prefix="validation/")
