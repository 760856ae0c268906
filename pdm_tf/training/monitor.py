"""What watches a run: progress bar, metrics, held-out evaluation and previews."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from flags.config import Config
from pdm_tf import data
from pdm_tf.atomic import disk_errors
from pdm_tf.images import image_grid, to_uint8
from pdm_tf.sampling.sampler import Sampler, cycled_labels
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import PatchedDiffusion


def progress(start: int, steps: int, enabled: bool) -> tqdm:
    """The bar on stderr: steps, rate and time left; few lines where stderr is a file."""
    return tqdm(
        total=steps, initial=min(start, steps), unit="step", desc="train", dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 20, disable=not enabled,
    )  # fmt: skip


class MetricsLog:
    """Means since the last line, as TensorBoard scalars and as JSON lines in metrics.jsonl."""

    def __init__(self, folder: Path | None, start: int, batch_size: int):
        """Without a folder nothing is written, as in workers that are not the chief."""
        self.folder = folder
        self.batch_size = batch_size
        self.since, self.last_step = time.monotonic(), start
        if folder:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                self.writer = tf.summary.create_file_writer(str(folder))
                self._end_last_line()

    def _end_last_line(self) -> None:
        """A process that was killed, or had no space left, may have written half a line."""
        with open(self.folder / "metrics.jsonl", "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.write(b"\n")

    def write(self, step: int, model: PatchedDiffusion, bar: tqdm) -> None:
        """Writes the means of the model's metrics since the last call, and resets them."""
        values = {metric.name: float(metric.result()) for metric in model.metrics}
        model.reset_metrics()
        elapsed, steps = time.monotonic() - self.since, step - self.last_step
        self.since, self.last_step = time.monotonic(), step
        values["images_per_second"] = steps * self.batch_size / elapsed
        values["learning_rate"] = float(model.optimizer._decayed_lr(tf.float32))
        values["skipped_steps"] = int(model.bad_steps[0])
        self.scalars(step, values)
        bar.set_postfix(loss=f"{values['loss']:.4g}", images_per_sec=f"{values['images_per_second']:.1f}")

    def scalars(self, step: int, values: dict[str, float], prefix: str = "") -> None:
        """Adds named numbers."""
        if not self.folder:
            return
        values = {prefix + name: value for name, value in values.items()}
        with disk_errors(self.folder):
            with self.writer.as_default(step=step):
                for name, value in values.items():
                    tf.summary.scalar(name, value)
            with open(self.folder / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def image(self, step: int, grid: np.ndarray) -> None:
        """Adds a uint8 picture (H, W, C)."""
        with disk_errors(self.folder):
            with self.writer.as_default(step=step):
                tf.summary.image("samples", grid[None])
            self.writer.flush()

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Keeps what is done inside out of the training speed."""
        before = time.monotonic()
        yield
        self.since += time.monotonic() - before


class Evaluation:
    """Losses on the first images of the held-out split, each time with the same noise."""

    def __init__(
        self,
        model: PatchedDiffusion,
        config: Config,
        info: data.DatasetInfo,
        strategy: tf.distribute.Strategy,
    ):
        held_out = held_out_split(info)
        self.possible = held_out is not None
        self.model, self.steps = model, config.training.eval_batches

        def load(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return data.load_batches(
                info,
                split=held_out,
                batch_size=context.get_per_replica_batch_size(config.training.batch_size),
                seed=config.seed,
                shuffle=False,
                image_shape=config.data.image_shape,
                input_pipelines=context.num_input_pipelines,
                input_pipeline_id=context.input_pipeline_id,
            )

        if self.possible:
            self.batches = strategy.distribute_datasets_from_function(load)

    def run(self) -> dict[str, float]:
        """The means of the model's losses."""
        names = self.model.evaluate(self.batches, steps=self.steps, verbose=0, return_dict=True)
        # Keras returns the sum of the workers' means: the metrics themselves know better.
        values = {
            metric.name: float(metric.result()) for metric in self.model.metrics if metric.name in names
        }
        self.model.reset_metrics()
        return values


class Preview:
    """Draws the same noise again and again with the averaged weights, as a run goes on.

    A network of a part of the process is shown on that part: to its x_theta of its cleanest t, and from
    images of the data set, diffused to its noisiest t, unless that is pure noise.
    """

    def __init__(
        self,
        model: PatchedDiffusion,
        ema: ExponentialMovingAverage,
        config: Config,
        info: data.DatasetInfo,
        strategy: tf.distribute.Strategy,
    ):
        """`strategy`: whose replicas share the images; all in this process."""
        self.denoiser, self.ema, self.config, self.info = model.denoiser, ema, config, info
        self.strategy, self.count = strategy, config.training.sample_images
        self.sampler: Sampler | None = None

    def draw(self) -> np.ndarray:
        """The grid of samples of now, uint8 (height, width, C)."""
        if self.sampler is None:
            self._make_sampler()
        with self.ema.applied():
            images = self.sampler(self.config.seed, range(len(self.labels)), self.labels)
        return image_grid(to_uint8(images[: self.count]))

    def _make_sampler(self) -> None:
        """Sets `sampler` and `labels`, of so many images that the replicas have equal shares."""
        denoiser, replicas = self.denoiser, self.strategy.num_replicas_in_sync
        batch, begin = -(-self.count // replicas) * replicas, None
        self.labels, whole = cycled_labels(denoiser, batch), len(denoiser.schedule)
        if denoiser.t_stop < whole:
            begin, self.labels = self._first_images(batch)
        share = (denoiser.t_stop - denoiser.t_start) / whole
        steps = max(1, round(share * self.config.training.sample_steps))
        with self.strategy.scope():
            self.sampler = Sampler(denoiser, sections=(steps,), init_image=begin)

    def _first_images(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The held-out split's first images, float32 (count, H, W, C) in [-1, 1], and labels, (count,)."""
        batches = data.load_batches(
            self.info, split=held_out_split(self.info) or "train", batch_size=count, seed=self.config.seed,
            shuffle=False, image_shape=self.config.data.image_shape,
        )  # fmt: skip
        return next(batches.as_numpy_iterator())


def held_out_split(info: data.DatasetInfo) -> str | None:
    """The split to measure a run on, if there is one."""
    return next((split for split in ("validation", "test") if info.num_examples.get(split)), None)
