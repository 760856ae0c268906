"""The training loop: the same for every strategy, and the same after a kill as without one."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import zlib
from collections.abc import Iterator

import tensorflow as tf
from absl import logging

from pdm_tf import data
from pdm_tf.config import presets
from pdm_tf.config.fields import Config
from pdm_tf.config.resolve import Given
from pdm_tf.config.words import word
from pdm_tf.describe import forward_flops
from pdm_tf.devices import Workers, is_chief
from pdm_tf.errors import Stopped, UserError, first_signal
from pdm_tf.images import write_png
from pdm_tf.progress import bar
from pdm_tf.run import RunFolder
from pdm_tf.training.distillation import Teaching
from pdm_tf.training.metrics import MetricsLog
from pdm_tf.training.periodic import (
    HeldOutLosses,
    Interrupted,
    Periodic,
    Previews,
    distributed_batches,
    images_in_memory,
)
from pdm_tf.training.scoring import HeldOutBits, SampleScores
from pdm_tf.training.state import State, restore


def check_batch(config: Config, replicas: int) -> None:
    """Raises UserError if the batch cannot be shared out."""
    batch = config.training.batch_size
    parts = config.training.grad_accum
    if batch % (replicas * parts):
        nearest = max(round(batch / replicas / parts), 1) * replicas * parts
        raise UserError(
            f"training.batch_size={batch} does not divide by {replicas} replicas x "
            f"training.grad_accum={parts}: the nearest that does is {nearest}"
        )
    if config.network.patch_switch_t and batch < 2 * replicas * parts:
        raise UserError(
            f"training.batch_size={batch} is one image for each of {replicas} replicas x training.grad_accum="
            f"{parts}, and two patch sizes (network.patch_switch_t) need two: use {2 * replicas * parts}"
        )


def train(
    config: Config,
    run: RunFolder,
    info: data.DatasetInfo,
    strategy: tf.distribute.Strategy,
    given: Given | None = None,
) -> int:
    """Trains the resolved config's network in a run folder, from its newest checkpoint if it has one.

    `given`: the words that the config was resolved from, which the folder keeps of a run that begins.

    Returns:
      The number of steps that are done: all, unless `training.minutes` were over before.
    Raises:
      UserError: damaged data or checkpoints, a full disk, gradients that stay infinite, a batch that cannot
        be shared out, or another process that trains in the same folder.
      Stopped: asked to stop by a signal; the state is saved.
    """
    settings = config.training
    workers = Workers(strategy)
    chief = is_chief(strategy)
    check_batch(config, strategy.num_replicas_in_sync)
    check_labels(config, info)
    with contextlib.ExitStack() as on_exit:
        # --- Of one mind with the other workers, and alone in the folder ---
        on_exit.enter_context(workers.ending_together())
        if not workers.same(zlib.crc32(config.to_json().encode())):
            raise UserError("the workers have different settings: give all of them the same command")
        if chief:
            on_exit.enter_context(run.sole_writer())
        state = restore(config, run, strategy)
        if not workers.same(state.step):
            raise UserError(
                f"this worker would go on from step {state.step:,} and another from elsewhere: give all "
                "workers one run folder on a disk that they share"
            )
        if chief:
            run.write_config(config, given)
            print(summary(config, run, info, state), flush=True)

        # --- Periodic work ---
        # Where minutes end the run, the number of its steps is not known.
        total = None if settings.minutes else settings.steps
        progress = bar(total=total, initial=state.step, unit="step", desc="train", disable=not chief)
        shown = on_exit.enter_context(progress)
        log = MetricsLog(run if chief else None, state.step, settings.batch_size)
        signals = Signals()
        on_exit.enter_context(first_signal(signals.note))
        limit = TimeLimit(settings.minutes)
        pace = Pace(config, state.step)
        # The state is saved first: whoever sent a signal may not wait, and a preview may fail.
        saving = saving_work(config, state, strategy, log, shown, chief)
        showing = showing_work(config, info, state, strategy, log, signals)
        on_exit.enter_context(data.naming_shards())
        with ended_by_signals(state.step, state, signals, workers), log.paused():
            for work in showing:
                work.catch_up(state.step, state.step == settings.steps)

        # --- Train ---
        batches = iter(training_batches(config, info, strategy, state.step))
        together = settings.steps_per_execution
        step = state.step
        for step in range(state.step + together, settings.steps + 1, together):
            state.model.make_train_function()(batches)
            if chief:
                pace.tell(step, shown)
            limit.describe(shown)
            shown.update(together)
            # Several workers exchange their flags only when they log.
            asked = workers.alone or step % settings.log_every == 0
            stop = asked and workers.any(bool(signals.name))
            late = asked and workers.any(limit.over)
            last = late or step == settings.steps
            for work in saving:
                work.do_if_due(step, last, stop)
            if stop and not last:
                workers.wait()
                raise stopped(signals.name, step)
            with ended_by_signals(step, state, signals, workers), log.paused():
                for work in showing:
                    work.do_if_due(step, last)
            if late:
                break
        workers.wait()
        return step


def check_labels(config: Config, info: data.DatasetInfo) -> None:
    """Raises UserError if a network that knows classes is to learn from images without, or of more."""
    if config.conditional and not data.has_labels(info, "train"):
        raise UserError(f"the split train of {info.name} is unlabelled: set network.class_conditioning=none")
    if config.conditional and info.num_classes > config.data.num_classes:
        raise UserError(
            f"{info.name} has {info.num_classes} classes: use data.num_classes={info.num_classes}, and not "
            f"{config.data.num_classes}"
        )


def summary(config: Config, run: RunFolder, info: data.DatasetInfo, state: State) -> str:
    """Lines on data, network, cost and place, and on whatever may surprise in the course of the run."""
    network = state.model.network
    settings = config.training
    (height, width), p = network.grid, network.patch_size
    held_out = data.held_out_split(info)
    counts = f"{info.num_examples['train']:,} images"
    if held_out:
        counts += f", {info.num_examples[held_out]:,} held out"
    length = f"{settings.minutes:g} minutes" if settings.minutes else f"{settings.steps:,} steps"
    lines = [
        f"data: {config.data.dataset}, {counts}, {' x '.join(map(str, config.data.image_shape))}, "
        f"{config.data.num_classes or 'no'} classes",
        f"network: {type(network.trunk).__name__}, {height} x {width} patches of {p} x {p} pixels, "
        f"{network.count_params():,} parameters, "
        f"{forward_flops(network) / 1e9:.3g} GFLOP forward for an image",
        f"training: {length}, {settings.batch_size} images a step, "
        f"learning rate {config.optimizer.learning_rate:g}, {settings.precision}",
        f"run folder: {run}, with all settings in config.json and previews in previews/",
    ]
    if network.patch_switch_t:
        lines[1] += (
            f"; from t = {network.patch_switch_t} on, patches of {2 * p} x {2 * p}, "
            f"{forward_flops(network, large=True) / 1e9:.3g} GFLOP"
        )
    if config.conditional and held_out and not data.has_labels(info, held_out):
        lines.append(f"the split {held_out} of {info.name} is unlabelled: it is measured with the null label")
    if settings.ema_lengths:
        number = settings.ema_snapshots * len(settings.ema_lengths)
        size = 4e-9 * network.count_params()
        lines.append(
            f"averages of lengths {word(settings.ema_lengths)}: up to {settings.ema_snapshots} x "
            f"{len(settings.ema_lengths)} snapshots in {run}/ema, {size:.3g} GB each, "
            f"{number * size:.3g} GB in all"
        )
    share = state.ema.share_of_first(settings.steps // settings.ema_every)
    if share > 0.5 and not settings.warm_start:
        lines.append(
            f"at its end, the averages of this run, from which it is sampled, will be {100 * share:.0f}% the "
            "first weights (more steps, training.ema_warmup=true in a new run, or a smaller "
            "training.ema_every help)"
        )
    return "\n".join(lines)


def training_batches(
    config: Config, info: data.DatasetInfo, strategy: tf.distribute.Strategy, start: int
) -> tf.distribute.DistributedDataset:
    """The training batches from step `start` on, each worker with its own share of every batch."""
    changes = {"horizontal_flip": config.data.horizontal_flip, "crop": config.data.crop}
    size = config.training.batch_size
    return distributed_batches(config, info, "train", size, strategy, start, seed=config.seed, **changes)


def saving_work(
    config: Config, state: State, strategy: tf.distribute.Strategy, log: MetricsLog, shown, chief: bool
) -> list[Periodic]:
    """Averages, a student's teachers, metrics and, of the chief, snapshots of averages and checkpoints."""
    settings = config.training
    model = state.model
    ema = state.ema

    def average(step: int) -> None:
        ema.update(step // settings.ema_every - 1)

    def write(step: int) -> None:
        log.write(step, model, model.bad_steps, settings.max_bad_steps, shown)

    def snapshot(step: int) -> None:
        if step >= settings.ema_every:  # there has been something to average
            with log.paused():
                for length in ema.lengths:
                    ema.save(state.checkpoints.run.snapshot(length, step), length)

    def save(step: int) -> None:
        with log.paused():
            state.checkpoints.save(step)

    work = [Periodic(settings.ema_every, average), Periodic(settings.log_every, write, at_end=True)]
    if config.is_student:
        teaching = Teaching(config, state, strategy, chief)
        work.append(Periodic(config.distillation.phase_steps, teaching.next_phase))
    if chief:
        updates_between = math.ceil(settings.steps / settings.ema_every / settings.ema_snapshots)
        work.append(Periodic(updates_between * settings.ema_every, snapshot, at_end=True))
        work.append(Periodic(settings.checkpoint_every, save, at_end=True, at_stop=True))
    return work


def showing_work(
    config: Config,
    info: data.DatasetInfo,
    state: State,
    strategy: tf.distribute.Strategy,
    log: MetricsLog,
    signals: Signals,
) -> list[Periodic]:
    """Held-out losses of the averages, where there is a held-out split; the chief's previews and scores."""
    run = state.checkpoints.run
    settings = config.training
    workers = Workers(strategy)
    chief = is_chief(strategy)
    work = []
    if data.held_out_split(info):
        held_out = HeldOutLosses(state.model, config, info, strategy)

        def evaluate(step: int) -> None:
            with state.ema.applied():
                log.scalars(step, held_out.measure(), prefix="validation/")

        def evaluated(step: int) -> bool:
            return not workers.any(chief and not log.has(step, "validation/loss"))

        work.append(Periodic(settings.eval_every, evaluate, done=evaluated))
    if not chief:
        return work

    # Replicas of other workers do not take part: only the chief draws.
    here = strategy if workers.alone else tf.distribute.get_strategy()
    denoiser = state.model.denoiser
    previews = Previews(denoiser, state.ema, config, info, here, images_in_memory(config, strategy))

    def preview(step: int) -> None:
        grid = previews.grid(signals.check)
        write_png(run.preview(step), grid)
        log.image(step, grid)

    previewed = Periodic(settings.sample_every, preview, at_end=True, done=lambda s: run.preview(s).exists())
    work.append(previewed)
    for kind in (SampleScores, HeldOutBits) if 0 < settings.score_every <= settings.steps else ():
        problem = kind.problem(config, info, denoiser)
        if problem:
            logging.warning("no %s (training.score_every): %s", kind.title, problem)
            continue
        scores = kind(config, info, previews, log, signals.check)
        work.append(Periodic(settings.score_every, scores.measure, done=scores.done))
    return work


class Signals:
    """The signal that came: it is noted instead of ending the process."""

    name = ""

    def note(self, name: str) -> None:
        self.name = name

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.name:
            raise Interrupted


class TimeLimit:
    """The minutes that a command may train; 0: no limit."""

    def __init__(self, minutes: float):
        self._end = time.monotonic() + 60 * minutes if minutes else math.inf

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end

    def describe(self, shown) -> None:
        """Has the progress bar show the minutes that are left, if there is a limit."""
        if self._end < math.inf:
            left = shown.format_interval(max(self._end - time.monotonic(), 0))
            shown.set_description_str(f"train, {left} left", refresh=False)


class Pace:
    """What a step takes here: the mean of ten, after the first, which makes the graph."""

    def __init__(self, config: Config, start: int):
        self._config = config
        self._first = start + config.training.steps_per_execution
        self._last = self._first + 10 * config.training.steps_per_execution
        self._begin = math.nan

    def tell(self, step: int, shown) -> None:
        """Writes `text` above a bar, whose rate begins after the first step."""
        if step == self._first:
            shown.unpause()
        if line := self.text(step):
            shown.write(line)
            sys.stdout.flush()

    def text(self, step: int) -> str:
        """After the last of these steps a line on the run's length, and on how its pictures will look."""
        if step == self._first:
            self._begin = time.monotonic()
        if step != self._last:
            return ""
        settings = self._config.training
        seconds = (time.monotonic() - self._begin) / (self._last - self._first)
        line = f"a step takes {seconds:.2g} s here"
        if not settings.minutes:
            line += f": all {settings.steps:,} take {_duration(settings.steps * seconds)}"
        begun_with_shipped = settings.warm_start and presets.shipped_weights(self._config)
        if begun_with_shipped and not self._config.is_student:
            looks = [
                f"{look} after {_duration(images / settings.batch_size * seconds)}"
                for images, look in presets.LOOKS.items()
            ]
            line += f"; expect {', '.join(looks)}"
        return line


def _duration(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    return f"{minutes / 60:.2g} hours" if minutes > 90 else f"{minutes} minute{'s' * (minutes > 1)}"


def stopped(signal_name: str, step: int) -> Stopped:
    """The end of a run that was asked to stop and has saved its state."""
    name = signal_name or "a signal to another worker"
    return Stopped(f"stopped by {name} at step {step:,}, all saved: run the same command to go on")


@contextlib.contextmanager
def ended_by_signals(step: int, state: State, signals: Signals, workers: Workers) -> Iterator[None]:
    """Ends previews and scores inside the block at a signal, and the run, with the step saved, by `Stopped`.

    What was not done is caught up with when the run goes on.
    """
    try:
        yield
    except Interrupted:
        if not workers.alone:  # the others wait for this one in the next step, and all end together later
            return
        if not state.checkpoints.run.checkpoint(step).exists():
            state.checkpoints.save(step)
        raise stopped(signals.name, step) from None
