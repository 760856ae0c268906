"""Metrics of a run: running means in the graph, and where they are written."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging
from tqdm import tqdm

from pdm_tf.atomic import append_text, disk_errors
from pdm_tf.run import RunFolder
from pdm_tf.stack import keras
from pdm_tf.training.optimizer import BadSteps

QUARTERS = 4


class LossMeans:
    """Running means of the losses that are finite, and of the squared error by quarter of the range of t."""

    def __init__(self, t_start: int, t_stop: int):
        self.t_start, self.t_stop = t_start, t_stop
        self.losses = {name: keras.metrics.Mean(name) for name in ("loss", "simple_loss", "vlb_loss")}
        self.quarters = [keras.metrics.Mean(f"mse_quarter{q + 1}") for q in range(QUARTERS)]

    @property
    def all(self) -> list[keras.metrics.Metric]:
        """The Keras metrics; `mse_quarter1` is the quarter with the least noise."""
        return [*self.losses.values(), *self.quarters]

    def update(self, losses: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Takes each image's losses, as of `Objective.losses`, into the means, and returns these by name."""
        for name, mean in self.losses.items():
            update_mean(mean, losses[name])
        quarter = (losses["t"] - self.t_start) * QUARTERS // (self.t_stop - self.t_start)
        for q, mean in enumerate(self.quarters):
            update_mean(mean, losses["mse"], tf.cast(quarter == q, tf.float32))
        return {mean.name: mean.result() for mean in self.all}


def update_mean(mean: keras.metrics.Mean, values: tf.Tensor, weights: tf.Tensor | float = 1.0) -> None:
    """Takes the finite ones of `values` into a mean."""
    finite = tf.math.is_finite(values)
    mean.update_state(tf.where(finite, values, 0.0), tf.cast(finite, tf.float32) * weights)


def measured(metrics: Iterable[keras.metrics.Mean]) -> dict[str, float]:
    """The means by name, without those of nothing: of a quarter of t that no image fell into, say.

    Keras gives such a mean as 0, which would read as no error at all.
    """
    return {mean.name: float(mean.result()) for mean in metrics if float(tf.convert_to_tensor(mean.count))}


class MetricsLog:
    """Numbers and pictures by step, as TensorBoard scalars and as JSON lines in metrics.jsonl."""

    def __init__(self, run: RunFolder | None, start: int, batch_size: int):
        """Without a run nothing is written, as in workers that are not the chief."""
        self.run = run
        self.batch_size = batch_size
        self._last_step = start
        self._since = time.monotonic()
        if run:
            with disk_errors(run.logs):
                run.logs.mkdir(parents=True, exist_ok=True)
                self.writer = tf.summary.create_file_writer(str(run.logs))
                # A process that was killed, or had no space left, may have written half a line.
                lines = run.metrics_file.read_bytes() if run.metrics_file.exists() else b""
                if lines and not lines.endswith(b"\n"):
                    append_text(run.metrics_file, "\n")

    def write(
        self, step: int, model: keras.Model, bad_steps: BadSteps, max_bad_steps: int, bar: tqdm
    ) -> None:
        """Writes the means of the model's metrics since the last call, and resets them.

        UserError if the last `max_bad_steps` steps had a gradient that is not finite.
        """
        values = measured(model.metrics)
        model.reset_metrics()
        seconds = time.monotonic() - self._since
        values["images_per_second"] = (step - self._last_step) * self.batch_size / seconds
        self._last_step = step
        self._since = time.monotonic()
        values["learning_rate"] = float(model.optimizer.learning_rate(step - 1))
        values["skipped_steps"] = int(bad_steps.variable[0])
        self.scalars(step, values)
        bar.set_postfix(
            loss=f"{values.get('loss', math.nan):.4g}",
            images_per_sec=f"{values['images_per_second']:.1f}",
            refresh=False,  # the bar knows how often
        )
        skipped = bad_steps.check(max_bad_steps)
        if bad_steps.variable[1]:
            logging.warning("%d of the steps so far were skipped for a gradient that is not finite", skipped)

    def scalars(self, step: int, values: dict[str, float], prefix: str = "") -> None:
        if not self.run:
            return
        values = {prefix + name: value for name, value in values.items()}
        with disk_errors(self.run.logs):
            with self.writer.as_default(step=step):
                for name, value in values.items():
                    tf.summary.scalar(name, value)
        append_text(self.run.metrics_file, json.dumps({"step": step, **values}) + "\n")

    def image(self, step: int, grid: np.ndarray) -> None:
        """Adds a uint8 picture (H, W, C)."""
        with disk_errors(self.run.logs):
            with self.writer.as_default(step=step):
                tf.summary.image("samples", grid[None])
            self.writer.flush()

    def has(self, step: int, name: str) -> bool:
        return step in self.run.metrics().get(name, np.zeros((0, 2)))[:, 0]

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Keeps the time of the block out of the training speed."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - before
