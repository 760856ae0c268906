"""How good a run's averages are as it goes on: their samples, the best of them, and their held-out bits."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from pdm_tf import data
from pdm_tf.atomic import atomic_json, sha256
from pdm_tf.config.fields import Config
from pdm_tf.evaluation import references
from pdm_tf.evaluation.features import extract, load_detector
from pdm_tf.evaluation.image_sets import shared_labels
from pdm_tf.evaluation.likelihood import Likelihood, held_out_batches, most_strata
from pdm_tf.evaluation.metrics import Comparison
from pdm_tf.run import RunFolder
from pdm_tf.training.metrics import MetricsLog
from pdm_tf.training.watch import Allowance, Preview, steps_of

ADVICE = "fewer training.score_images, or a larger training.score_every,"
STRATA = 16  # t drawn for each held-out image, besides t = 0
BITS = "bits_per_dim"


class Scoring:
    """Distances between samples of the averaged weights and the training images, with the embedded detector.

    The samples are drawn as previews are, always from the same noise and of the same labels, so that two
    steps differ by their weights alone. The distances are those of few images: they tell the steps of a run
    apart, and are not to be compared with those of other numbers of images.

    With `training.keep_best` the averages of the smallest Fréchet distance lie in the run's ema/best.npz, and
    what is known of them in ema/best.json. A run that is killed, whenever that is, has in the end the same.

    Attributes:
      possible: whether it is asked for, and the network draws images that the detector can look at.
    """

    def __init__(
        self,
        config: Config,
        info: data.DatasetInfo,
        preview: Preview,
        run: RunFolder,
        log: MetricsLog,
        check: Callable[[], None],
    ):
        """`preview` draws the samples, `check` is called about every second and may raise to end a score."""
        self.settings, self.config, self.info = config.training, config, info
        self.preview, self.run, self.log, self.check = preview, run, log, check
        self.possible = self.settings.score_every > 0
        whole = preview.denoiser.t_stop - preview.denoiser.t_start == len(preview.denoiser.schedule)
        if self.possible and not (whole and config.data.image_shape[-1] in (1, 3)):
            logging.warning(
                "no scores (training.score_every): %s",
                "a detector looks at images of 1 or 3 channels"
                if whole
                else "this network alone draws no images: evaluate it together with its other experts",
            )
            self.possible = False
        if self.possible:
            self.detector = load_detector()
            self.names = [self.detector.title(kind) for kind in ("frechet", "kernel")]
            self.allowance = Allowance("score", ADVICE, run, log, self.settings.batch_size)
            self.best = self._read_best() if self.settings.keep_best else None
            self.comparison, self.labels = None, None

    def done(self, step: int) -> bool:
        """Whether the run has a score of that step."""
        return step in steps_of(self.run.metrics(), f"validation/{self.names[0]}")

    def score(self, step: int) -> None:
        """Scores the averages of now, if there is time for it, and keeps them if they are the best so far.

        Raises:
          Interrupted: a signal came; nothing is kept of the score.
        """
        seconds = self.settings.score_images * self.preview.seconds_per_image(
            self.log.images_per_second(step)
        )
        # What a killed process left half written must be put right, whatever the time.
        if not self.allowance.budget.allows(seconds) and not (self.settings.keep_best and self.best is None):
            self.allowance.too_little(step)
            return
        with self.allowance.spending(step):
            values = self._measure()
            if self.settings.keep_best:
                self._keep_best(step, values)
            # Last: it says that all of this is done.
            self.log.scalars(step, values, prefix="validation/")

    def _measure(self) -> dict[str, float]:
        """The distances of now, by their names."""
        count, check = self.settings.score_images, self.check
        if self.comparison is None:
            reference = references.of_split(
                self.detector, self.info, "train", self.config.data.image_shape, progress=lambda done: check()
            )
            self.comparison = Comparison(self.detector, reference)
            self.labels = shared_labels(reference.label_counts or [1], count, self.config.seed)
        with self.preview.ema.applied():
            images = self.preview.batches(count, self.labels, check, "score")
            return self.comparison.distances(extract(self.detector, images).pooled)

    def _keep_best(self, step: int, values: dict[str, float]) -> None:
        score = values[self.names[0]]
        if self.best is not None and score > self.best[self.names[0]]:
            return
        self.preview.ema.save(self.run.best_weights)
        self.best = {
            "step": step, **values, **self._how(), "weights_sha256": sha256(self.run.best_weights),
        }  # fmt: skip
        atomic_json(self.run.best_note, self.best)

    def _how(self) -> dict[str, Any]:
        """What two scores must have in common to be compared, as JSON has it."""
        how = {
            "images": self.settings.score_images,
            "seed": self.config.seed,
            "sampling": dataclasses.asdict(self.preview.sampling),
            "detector_sha256": self.detector.sha256,
            "data_sha256": self.info.sha256,
        }
        return json.loads(json.dumps(how))

    def _read_best(self) -> dict[str, Any] | None:
        """What best.json says; None if there is none, or it is not of best.npz, or was measured otherwise."""
        try:
            best = json.loads(self.run.best_note.read_text())
            known = {**best, **self._how()} == best and np.isfinite(best[self.names[0]])
            return best if known and best["weights_sha256"] == sha256(self.run.best_weights) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


class HeldOutBits:
    """Bits per dimension of held-out images under the averaged weights: an estimate by few t for each.

    The images, at most `training.score_images`, their noise and their t are always the same, so that two
    steps differ by their weights alone. Of a network of a part of the process these are the bits of that
    part: those of all experts add up to the whole.

    Attributes:
      possible: whether it is asked for, and there are held-out images of 8 bits.
    """

    def __init__(
        self,
        config: Config,
        info: data.DatasetInfo,
        preview: Preview,
        run: RunFolder,
        log: MetricsLog,
        check: Callable[[], None],
    ):
        """Arguments as of `Scoring`, of whose `preview` denoiser, averages and strategy are taken."""
        self.config, self.info, self.preview = config, info, preview
        self.run, self.log, self.check = run, log, check
        self.split, self.possible = data.held_out_split(info), config.training.score_every > 0
        as_stored = info.image_dtype == "uint8" and None not in info.image_shape
        if self.possible and not (self.split and as_stored):
            logging.warning(
                "no bits per dimension (training.score_every): %s",
                "they are of images of 8 bits, and these are not, or are resized as they are read"
                if self.split
                else "the data set has no held-out split",
            )
            self.possible = False
        if self.possible:
            self.allowance = Allowance("bits", ADVICE, run, log, config.training.batch_size)
            self.count = min(config.training.score_images, info.num_examples[self.split])
            self.strata = min(STRATA, most_strata(preview.denoiser)) or None
            self.measure, self.seconds = None, None

    def done(self, step: int) -> bool:
        """Whether the run has the bits of that step."""
        return step in steps_of(self.run.metrics(), f"validation/{BITS}")

    def score(self, step: int) -> None:
        """Measures the averages of now, if there is time for it.

        Raises:
          Interrupted: a signal came.
        """
        # Of a train step about a third is the forward pass.
        likely = self.count * (STRATA + 1) / (3.0 * self.log.images_per_second(step))
        if not self.allowance.budget.allows(likely if self.seconds is None else self.seconds):
            self.allowance.too_little(step)
            return
        before = self.allowance.budget.used
        with self.allowance.spending(step):
            self.log.scalars(step, {BITS: self._measure()}, prefix="validation/")
        self.seconds = self.allowance.budget.used - before

    def _measure(self) -> float:
        if self.measure is None:
            with self.preview.strategy.scope():
                self.measure = Likelihood(self.preview.denoiser)
        shape, batch = self.config.data.image_shape, self.preview.most_at_once
        batches = held_out_batches(self.info, self.split, shape, batch, self.count)
        with self.preview.ema.applied():
            bits = self.measure(
                batches, seed=self.config.seed, strata=self.strata, check=self.check, progress=False
            )
        return bits.bits_per_dim.value
