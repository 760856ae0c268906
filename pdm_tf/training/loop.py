"""The training loop: the same for every strategy, and the same after a kill as without one."""

from __future__ import annotations

import contextlib
import fcntl
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf
from absl import logging

from flags.config import Config, differences
from flags.errors import UserError
from pdm_tf import data
from pdm_tf.atomic import atomic_file, disk_errors
from pdm_tf.denoiser import newest_ema, read_config
from pdm_tf.images import write_png
from pdm_tf.training.checkpoints import Checkpoints
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import PatchedDiffusion, build_model
from pdm_tf.training.monitor import Evaluation, MetricsLog, Preview, progress
from pdm_tf.training.strategy import Workers, is_chief, is_tpu

# What may change between the parts of one run without changing what its steps compute.
MAY_CHANGE = (
    "training.steps", "training.log_every", "training.sample_every", "training.sample_images",
    "training.sample_steps", "training.checkpoint_every", "training.keep_checkpoints", "training.keep_every",
    "training.eval_every", "training.eval_batches", "training.max_bad_steps",
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
    batch, parts = config.training.batch_size, config.training.grad_accum
    replicas = strategy.num_replicas_in_sync
    if batch % (replicas * parts):
        nearest = max(round(batch / replicas / parts), 1) * replicas * parts
        raise UserError(
            f"training.batch_size={batch} does not divide by {replicas} replicas x "
            f"training.grad_accum={parts}: the nearest that does is {nearest}"
        )
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
      UserError: damaged data or checkpoints, a full disk, gradients that stay infinite, or another process
        that trains in the same folder.
      Stopped: asked to stop by a signal; the state is saved.
    """
    settings, run_dir, chief = config.training, Path(run_dir), is_chief(strategy)
    workers = Workers(strategy)
    with contextlib.ExitStack() as stack:
        stack.enter_context(workers.ending_together())
        if not workers.same(zlib.crc32(config.to_json().encode())):
            raise UserError("the workers have different settings: give all of them the same command")
        if chief:
            stack.enter_context(sole_writer(run_dir))

        # --- Everything that a checkpoint holds ---
        with strategy.scope():
            model = build_model(config, settings.precision)
        ema = ExponentialMovingAverage(
            model.network.trainable_variables, settings.ema_decay, settings.ema_warmup
        )
        checkpoints = Checkpoints(
            run_dir, training_state(model), ema, settings.keep_checkpoints, settings.keep_every
        )
        start = first_step(config, checkpoints, ema)
        if not workers.same(start):
            raise UserError(
                f"this worker would go on from step {start:,} and another from elsewhere: give all workers "
                "one --run_dir on a disk that they share"
            )

        if chief:
            with atomic_file(run_dir / "config.json") as partial:
                partial.write_text(config.to_json())

        # --- What watches it ---
        bar = stack.enter_context(progress(start, settings.steps, enabled=chief))
        log = MetricsLog(run_dir / "logs" if chief else None, start, settings.batch_size)
        # Replicas of other workers do not take part: only the chief draws.
        here = strategy if workers.alone else tf.distribute.get_strategy()
        preview = Preview(model, ema, config, info, here)

        def picture(step: int) -> Path:
            return run_dir / "samples" / f"step_{step:08d}.png"

        def show(step: int) -> None:
            grid = preview.draw()
            write_png(picture(step), grid)
            log.image(step, grid)

        evaluation = Evaluation(model, config, info, strategy)
        signals = stack.enter_context(Signals(workers))
        stack.enter_context(data.naming_shards())

        # --- Train ---
        load = train_pipeline(config, info, model, start)
        batches = iter(strategy.distribute_datasets_from_function(load))
        train_steps, together = model.make_train_function(), settings.steps_per_execution
        for step in range(start + together, settings.steps + 1, together):
            train_steps(batches)
            bar.update(together)
            last = step == settings.steps
            if step % settings.ema_every == 0:
                ema.update(step // settings.ema_every - 1)
            if step % settings.log_every == 0 or last:
                log.write(step, model, bar)
                check_bad_steps(model, settings.max_bad_steps)
            with log.clock_stopped():
                # Saved first: whoever sent a signal may not wait, and what watches the run may fail.
                stop = signals.agreed(step, settings.log_every)
                if chief and (step % settings.checkpoint_every == 0 or last or stop):
                    checkpoints.save(step)
                if stop and not last:
                    workers.wait()
                    raise Stopped(
                        f"stopped by {stop} at step {step:,}, all saved: run the same command to go on"
                    )
                if step % settings.eval_every == 0 and evaluation.possible:
                    with ema.applied():
                        log.scalars(step, evaluation.run(), prefix="validation/")
                if chief and step % settings.sample_every == 0:
                    show(step)
        if chief and not picture(settings.steps).exists():
            show(settings.steps)
        workers.wait()


def first_step(config: Config, checkpoints: Checkpoints, ema: ExponentialMovingAverage) -> int:
    """Restores what there is to start from, and returns how many steps are done."""
    step = checkpoints.restore_newest()
    if step is not None:
        if step > config.training.steps:
            raise UserError(
                f"{checkpoints.run_dir} has trained for {step:,} steps already, and training.steps="
                f"{config.training.steps}: ask for more, or use another --run_dir"
            )
        print(f"resuming {checkpoints.run_dir} at step {step:,} of {config.training.steps:,}", flush=True)
        return step
    if config.training.warm_start:
        weights = newest_ema(config.training.warm_start)
        ema.load(weights, into_variables=True)
        print(f"starting from {weights}", flush=True)
    return 0


def training_state(model: PatchedDiffusion) -> tf.train.Checkpoint:
    """What is saved of a model: parameters, optimizer with its step count, and the count of bad steps."""
    # Slot variables are made before restoring, so that a checkpoint without them is noticed.
    model.optimizer._create_all_weights(model.network.trainable_variables)
    return tf.train.Checkpoint(network=model.network, optimizer=model.optimizer, bad_steps=model.bad_steps)


def train_pipeline(config: Config, info: data.DatasetInfo, model: PatchedDiffusion, start: int) -> Callable:
    """The function that makes each worker's share of the training batches from step `start` on."""

    def load(context: tf.distribute.InputContext) -> tf.data.Dataset:
        model.input_pipelines = context.num_input_pipelines
        replicas_each = context.num_replicas_in_sync // context.num_input_pipelines
        return data.load_batches(
            info,
            split="train",
            batch_size=context.get_per_replica_batch_size(config.training.batch_size),
            seed=config.seed,
            start_batch=start * replicas_each,
            horizontal_flip=config.data.horizontal_flip,
            image_shape=config.data.image_shape,
            input_pipelines=context.num_input_pipelines,
            input_pipeline_id=context.input_pipeline_id,
        )

    return load


def check_bad_steps(model: PatchedDiffusion, limit: int) -> None:
    """Raises UserError if the last `limit` steps or more had gradients that are not finite."""
    skipped, row, first, first_t = model.bad_steps.numpy().tolist()
    if row >= limit:
        level = f"t = {first_t}" if first_t >= 0 else "a finite loss"
        raise UserError(
            f"{row} steps in a row had a gradient that is not finite, from step {first + 1:,} on, beginning "
            f"at {level}; they were skipped, and the weights are those of the last checkpoint or newer: "
            "start from them with --warm_start in a new --run_dir, at a lower optimizer.learning_rate"
        )
    if row:
        logging.warning("%d of the steps so far were skipped for a gradient that is not finite", skipped)


@contextlib.contextmanager
def sole_writer(run_dir: Path) -> Iterator[None]:
    """Holds the run folder's lock, which the system lets go of when the process ends, however it ends."""
    with disk_errors(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open(run_dir / ".lock", "w")  # noqa: SIM115 (closed below, after the run)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process trains in {run_dir}: wait for it, or use another --run_dir"
            ) from error
        yield


class Signals:
    """Notes SIGTERM and SIGINT instead of dying of them; a second one of the same kind kills as usual."""

    def __init__(self, workers: Workers):
        self.received = ""
        self.workers = workers

    def __enter__(self):
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        signal.signal(number, self._before[number])
        self.received = signal.Signals(number).name

    def agreed(self, step: int, every: int) -> str:
        """The signal to stop for after this step, or ""; workers agree each `every` steps."""
        if self.workers.alone:
            return self.received
        if step % every or not self.workers.any(bool(self.received)):
            return ""
        return self.received or "a signal to another worker"
