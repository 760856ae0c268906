"""The training loop: the same for every strategy, and the same after a kill as without one."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from absl import logging
from tqdm import tqdm

from flags.config import Config, differences
from flags.errors import UserError
from pdm_tf import data
from pdm_tf.atomic import atomic_file
from pdm_tf.denoiser import read_config
from pdm_tf.images import image_grid, to_uint8, write_png
from pdm_tf.sampling.sampler import Sampler, cycled_labels
from pdm_tf.training.checkpoints import Checkpoints
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import PatchedDiffusion, build_model
from pdm_tf.training.strategy import is_tpu

# What may change between the parts of one run without changing what its steps compute.
MAY_CHANGE = (
    "training.steps", "training.log_every", "training.sample_every", "training.sample_images",
    "training.sample_steps", "training.checkpoint_every", "training.keep_checkpoints",
)  # fmt: skip


class Stopped(Exception):  # noqa: N818 (not an error: somebody asked for it)
    """SIGTERM or SIGINT ended the run after a whole step; its state is saved."""


def resolve(config: Config, run_dir: str | Path, strategy: tf.distribute.Strategy) -> Config:
    """The config that a run in `run_dir` trains with: precision decided, and equal to an earlier part's.

    Raises:
      UserError: the folder holds a run with other settings, or the batch does not divide by the replicas.
    """
    if config.training.precision == "auto":
        precision = "mixed_bfloat16" if is_tpu(strategy) else "float32"
        config = config.replace({"training.precision": precision})
    batch, replicas = config.training.batch_size, strategy.num_replicas_in_sync
    if batch % replicas:
        nearest = max(round(batch / replicas), 1) * replicas
        raise UserError(f"training.batch_size={batch} does not divide by {replicas} replicas: use {nearest}")
    if (Path(run_dir) / "config.json").is_file():
        changed = differences(read_config(run_dir), config)
        fixed = [f"{k} ({old} there, {new} now)" for k, (old, new) in changed.items() if k not in MAY_CHANGE]
        if fixed:
            raise UserError(
                f"{run_dir} holds a run with other settings: {'; '.join(fixed)}: "
                "give the same ones to resume it, or another --run_dir"
            )
    return config


def train(
    config: Config, run_dir: str | Path, info: data.DatasetInfo, strategy: tf.distribute.Strategy
) -> None:
    """Trains the config's network in `run_dir`, from its newest checkpoint if it has one.

    Args:
      config: a config from `resolve`.
      run_dir: gets config.json, checkpoints/, ema/, logs/ and samples/.
      info: the data set.
      strategy: where to compute.
    Raises:
      UserError: damaged data or checkpoints, a full disk, or a loss that is not finite.
      Stopped: asked to stop by a signal; the state is saved.
    """
    settings, run_dir = config.training, Path(run_dir)
    with atomic_file(run_dir / "config.json") as partial:
        partial.write_text(config.to_json())

    # --- Everything that a checkpoint holds ---
    with strategy.scope():
        model = build_model(config, settings.precision)
    ema = ExponentialMovingAverage(model.network.trainable_variables, settings.ema_decay, settings.ema_warmup)
    checkpoints = Checkpoints(run_dir, training_state(model), ema, settings.keep_checkpoints)
    start = checkpoints.restore_newest() or 0
    if start:
        print(f"Resuming {run_dir} at step {start:,} of {settings.steps:,}", flush=True)

    # --- Train ---
    log = MetricsLog(run_dir / "logs", settings.batch_size)
    preview = Preview(model, ema, config)
    batches = iter(strategy.distribute_datasets_from_function(_pipeline(config, info, start)))
    train_steps = model.make_train_function()
    together = settings.steps_per_execution
    bar = tqdm(
        total=settings.steps, initial=min(start, settings.steps), unit="step", dynamic_ncols=True,
        desc="train", mininterval=0.5 if sys.stderr.isatty() else 20,
    )  # fmt: skip
    saved = start
    with Signals() as signals, bar, data.naming_shards():
        for step in range(start + together, settings.steps + 1, together):
            train_steps(batches)
            bar.update(together)
            if step % settings.ema_every == 0:
                ema.update(step // settings.ema_every - 1)
            if step % settings.log_every == 0:
                log.write(step, model, bar)
            if step % settings.sample_every == 0 or step == settings.steps:
                with log.clock_stopped():
                    preview.write(run_dir / "samples" / f"step_{step:08d}.png", log, step)
            if step % settings.checkpoint_every == 0 or step == settings.steps or signals.received:
                checkpoints.save(step)
                saved = step
            if signals.received:
                raise Stopped(
                    f"stopped by {signals.received} at step {saved:,}; run the same command to go on"
                )


def training_state(model: PatchedDiffusion) -> tf.train.Checkpoint:
    """What is saved of a model: parameters, optimizer and step."""
    # Slot variables are made before restoring, so that a checkpoint without them is noticed.
    model.optimizer._create_all_weights(model.network.trainable_variables)
    return tf.train.Checkpoint(network=model.network, optimizer=model.optimizer, step=model.step)


def _pipeline(config: Config, info: data.DatasetInfo, start_batch: int):
    def load(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return data.load_batches(
            info,
            split="train",
            batch_size=context.get_per_replica_batch_size(config.training.batch_size),
            seed=config.seed,
            start_batch=start_batch,
            horizontal_flip=config.data.horizontal_flip,
            image_shape=config.data.image_shape,
            input_pipelines=context.num_input_pipelines,
            input_pipeline_id=context.input_pipeline_id,
        )

    return load


class Signals:
    """Notes SIGTERM and SIGINT instead of dying of them; a second one of the same kind kills as usual."""

    received: str | None = None

    def __enter__(self):
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        signal.signal(number, self._before[number])
        self.received = signal.Signals(number).name


class MetricsLog:
    """Means since the last line, as TensorBoard scalars and as JSON lines in logs/metrics.jsonl."""

    def __init__(self, folder: Path, batch_size: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = tf.summary.create_file_writer(str(folder))
        self.lines = folder / "metrics.jsonl"
        self.batch_size = batch_size
        self.since, self.last_step = time.monotonic(), None

    def write(self, step: int, model: PatchedDiffusion, bar: tqdm) -> None:
        """Writes the means of the model's metrics and resets them.

        Raises:
          UserError: the loss is not finite.
        """
        values = {metric.name: float(metric.result()) for metric in model.metrics}
        model.reset_metrics()
        values["learning_rate"] = float(model.optimizer._decayed_lr(tf.float32))
        elapsed, steps = time.monotonic() - self.since, step - (self.last_step or bar.initial)
        values["images_per_second"] = steps * self.batch_size / elapsed
        self.since, self.last_step = time.monotonic(), step
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss is {values['loss']} at step {step:,}: lower optimizer.learning_rate and resume"
            )
        with self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        with open(self.lines, "a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        bar.set_postfix(loss=f"{values['loss']:.4g}", images_per_sec=f"{values['images_per_second']:.1f}")

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Keeps what is done inside out of the training speed."""
        before = time.monotonic()
        yield
        self.since += time.monotonic() - before

    def image(self, step: int, grid) -> None:
        """Adds a uint8 picture (H, W, C)."""
        with self.writer.as_default(step=step):
            tf.summary.image("samples", grid[None])
        self.writer.flush()


@dataclass
class Preview:
    """Draws the same noise again and again with the averaged weights, as a run goes on."""

    model: PatchedDiffusion
    ema: ExponentialMovingAverage
    config: Config
    sampler: Sampler | None = None

    def write(self, path: Path, log: MetricsLog, step: int) -> None:
        """Draws the grid of samples of `step` to `path` and to TensorBoard."""
        settings, denoiser = self.config.training, self.model.denoiser
        if self.sampler is None:
            self.sampler = Sampler(denoiser, sections=(settings.sample_steps,))
        count = settings.sample_images
        with self.ema.applied():
            images = self.sampler(self.config.seed, range(count), cycled_labels(denoiser, count))
        grid = image_grid(to_uint8(images))
        write_png(path, grid)
        log.image(step, grid)
        logging.info("samples: %s", path)
