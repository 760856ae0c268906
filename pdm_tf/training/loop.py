"""The training loop: the same for every strategy, and the same after a kill as without one."""

from __future__ import annotations

import contextlib
import math
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import tensorflow as tf
from absl import logging
from tqdm import tqdm

from pdm_tf import data, stack
from pdm_tf.config.fields import Config
from pdm_tf.config.words import word
from pdm_tf.describe import count_parameters, forward_flops
from pdm_tf.devices import Workers, is_chief
from pdm_tf.errors import SIGNALS, Stopped, UserError, end_at_once_next_time
from pdm_tf.images import write_png
from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.networks.warm_start import for_larger_images, with_augmentation, with_large_patches
from pdm_tf.run import RunFolder
from pdm_tf.training.checkpoints import Checkpoints
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.metrics import MetricsLog, progress
from pdm_tf.training.model import PatchedDiffusion, build_model
from pdm_tf.training.scoring import HeldOutBits, Scoring
from pdm_tf.training.watch import Allowance, Evaluation, Interrupted, Preview, Watch, steps_of
from pdm_tf.weights import variable_names


def check_batch(config: Config, replicas: int) -> None:
    """Raises UserError if the batch cannot be shared out."""
    batch, parts = config.training.batch_size, config.training.grad_accum
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


def check_labels(config: Config, info: data.DatasetInfo, tell: Callable[[str], None]) -> None:
    """Finds out at the start, not at an evaluation, whether the splits have labels; tells what follows.

    Raises:
      UserError: a network that knows classes is to learn from images without.
    """
    held_out = data.held_out_split(info)
    if not config.conditional:
        return
    if not data.has_labels(info, "train"):
        raise UserError(f"the split train of {info.name} is unlabelled: set network.class_conditioning=none")
    if held_out and not data.has_labels(info, held_out):
        tell(f"the split {held_out} of {info.name} is unlabelled: it is measured with the null label")


def train(config: Config, run: RunFolder, info: data.DatasetInfo, strategy: tf.distribute.Strategy) -> int:
    """Trains the config's network in a run folder, from its newest checkpoint if it has one.

    Args:
      config: a config from `resolve`.
      run: gets config.json, checkpoints/, ema/, logs/ and previews/.
      info: the data set.
      strategy: where to compute.
    Returns:
      The step that it has come to: the last one, unless `training.minutes` were over before.
    Raises:
      UserError: damaged data or checkpoints, a full disk, gradients that stay infinite, a batch that cannot
        be shared out, or another process that trains in the same folder.
      Stopped: asked to stop by a signal; the state is saved.
    """
    settings, workers, chief = config.training, Workers(strategy), is_chief(strategy)
    check_batch(config, strategy.num_replicas_in_sync)
    check_labels(config, info, tell=print if chief else lambda line: None)
    with contextlib.ExitStack() as on_exit:
        # --- Of one mind, and alone in the folder ---
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
            run.write_config(config)
            tell_of_network(state.model.network)
            tell_of_snapshots(config, run, state.model)

        # --- What watches it ---
        # What minutes bound has no known end in steps: the bar tells of the minutes.
        bar = on_exit.enter_context(progress(state.step, 0 if settings.minutes else settings.steps, chief))
        log = MetricsLog(run if chief else None, state.step, settings.batch_size)
        signals = on_exit.enter_context(Signals(workers, settings.minutes))
        # Saved first: whoever sent a signal may not wait, and what shows the run may fail.
        keeping = what_keeps(config, state, log, bar, chief)
        showing = what_shows(config, info, state, strategy, log, signals)
        on_exit.enter_context(data.naming_shards())

        # --- Train ---
        with abandoned_for_signals(state.step, state, signals, chief):
            for watch in showing:
                watch.make_up(state.step, state.step == settings.steps)
        load = train_pipeline(config, info, state.step)
        batches = iter(strategy.distribute_datasets_from_function(load))
        train_steps, together = state.model.make_train_function(), settings.steps_per_execution
        step = state.step
        for step in range(state.step + together, settings.steps + 1, together):
            train_steps(batches)
            signals.advance(bar, together)
            stop, late = signals.agreed(step, settings.log_every)
            last = late or step == settings.steps
            for watch in keeping:
                watch.look(step, last, bool(stop))
            if stop and not last:
                workers.wait()
                raise stopped(stop, step)
            with abandoned_for_signals(step, state, signals, chief):
                for watch in showing:
                    watch.look(step, last, bool(stop))
            if late:
                break
        workers.wait()
        return step


def stopped(signal_name: str, step: int) -> Stopped:
    """What is said of a stop."""
    return Stopped(f"stopped by {signal_name} at step {step:,}, all saved: run the same command to go on")


@contextlib.contextmanager
def abandoned_for_signals(step: int, state: State, signals: Signals, chief: bool) -> Iterator[None]:
    """Inside the block a run is shown; a signal ends that, and the run, with the step saved.

    Raises:
      Stopped: there was one. What was abandoned is made up for when the run goes on.
    """
    try:
        yield
    except Interrupted as interrupted:
        if not (signals.workers.alone or interrupted.together):
            return  # the others know nothing of it, and wait for this one in the next step
        if chief and not state.checkpoints.run.checkpoint(step).exists():
            state.checkpoints.save(step)
        signals.workers.wait()
        raise stopped(signals.name, step) from None


class State(NamedTuple):
    """What a checkpoint holds, what keeps it, and how many steps are done."""

    model: PatchedDiffusion
    ema: ExponentialMovingAverage
    checkpoints: Checkpoints
    step: int


def restore(config: Config, run: RunFolder, strategy: tf.distribute.Strategy) -> State:
    """A model, its optimizer and its averages, as the newest checkpoint has them, or new.

    Raises:
      UserError: no checkpoint is whole, or the run is longer than it is to be.
    """
    settings = config.training
    with strategy.scope():
        model = build_model(config, settings.precision)
    variables = model.network.trainable_variables
    ema = ExponentialMovingAverage(variables, settings.ema_decay, settings.ema_warmup, settings.ema_lengths)
    saved = training_state(model)
    checkpoints = Checkpoints(run, saved, ema, settings.keep_checkpoints, settings.keep_every)
    return State(model, ema, checkpoints, first_step(config, checkpoints, ema))


def what_keeps(config: Config, state: State, log: MetricsLog, bar: tqdm, chief: bool) -> list[Watch]:
    """Averages, metrics and, of the chief, snapshots of averages and checkpoints."""
    t, model = config.training, state.model

    def average(step: int) -> None:
        state.ema.update(step // t.ema_every - 1)

    def write(step: int) -> None:
        log.write(step, model, model.bad_steps, t.max_bad_steps, bar)

    def snapshot(step: int) -> None:
        if step >= t.ema_every:  # there has been something to average
            for length in state.ema.lengths:
                state.ema.save_length(length, state.checkpoints.run.snapshot(length, step))

    watches = [Watch(t.ema_every, average), Watch(t.log_every, write, at_end=True)]
    if chief:
        updates_between = math.ceil(t.steps / t.ema_every / t.ema_snapshots)
        watches.append(Watch(updates_between * t.ema_every, log.off_the_clock(snapshot), at_end=True))
        save = log.off_the_clock(state.checkpoints.save)
        watches.append(Watch(t.checkpoint_every, save, at_end=True, at_stop=True))
    return watches


def tell_of_network(network: PatchedNetwork) -> None:
    """Says what is trained, and what it costs."""
    (height, width), p = network.grid, network.patch_size
    large = ""
    if network.patch_switch_t:
        large = (
            f"; from t = {network.patch_switch_t} on, patches of {2 * p} x {2 * p}, "
            f"{forward_flops(network, large=True) / 1e9:.3g} GFLOP"
        )
    print(
        f"network: {height} x {width} patches of {p} x {p} pixels, {count_parameters(network):,} parameters, "
        f"{forward_flops(network) / 1e9:.3g} GFLOP forward for an image{large}",
        flush=True,
    )


def tell_of_snapshots(config: Config, run: RunFolder, model: PatchedDiffusion) -> None:
    """Says how much of the disk the snapshots of averages will take, if there are to be any."""
    lengths, most = config.training.ema_lengths, config.training.ema_snapshots
    size = 4e-9 * sum(variable.shape.num_elements() for variable in model.network.trainable_variables)
    if lengths:
        print(
            f"averages of lengths {word(lengths)}: up to {most} x {len(lengths)} snapshots in {run}/ema, "
            f"{size:.3g} GB each, {most * len(lengths) * size:.3g} GB in all",
            flush=True,
        )


def what_shows(
    config: Config,
    info: data.DatasetInfo,
    state: State,
    strategy: tf.distribute.Strategy,
    log: MetricsLog,
    signals: Signals,
) -> list[Watch]:
    """Held-out losses of the averages, where there is a held-out split; the chief's previews and scores."""
    run, t, chief = state.checkpoints.run, config.training, is_chief(strategy)
    evaluation = Evaluation(state.model, config, info, strategy)

    def evaluate(step: int) -> None:
        with state.ema.applied():
            log.scalars(step, evaluation.run(signals.check_together), prefix="validation/")

    def evaluated(step: int) -> bool:
        missing = chief and step not in steps_of(run.metrics(), "validation/loss")
        return not signals.workers.any(missing)

    watches = []
    if evaluation.possible:
        watches.append(Watch(t.eval_every, log.off_the_clock(evaluate), done=evaluated))
    if chief:
        # Replicas of other workers do not take part: only the chief draws.
        here = strategy if signals.workers.alone else tf.distribute.get_strategy()
        preview = Preview(state.model, state.ema, config, info, here)
        show = log.off_the_clock(Showing(config, run, preview, log, signals).draw)
        watches.append(Watch(t.sample_every, show, at_end=True, done=lambda s: run.preview(s).exists()))
        for kind in (Scoring, HeldOutBits):
            scoring = kind(config, info, preview, run, log, signals.check)
            if scoring.possible:
                watches.append(Watch(t.score_every, log.off_the_clock(scoring.score), done=scoring.done))
    return watches


class Showing:
    """Draws previews, as files and in TensorBoard, as far as the time that they may take goes."""

    def __init__(self, config: Config, run: RunFolder, preview: Preview, log: MetricsLog, signals: Signals):
        self.settings, self.run, self.preview, self.log, self.signals = (
            config.training, run, preview, log, signals,
        )  # fmt: skip
        advice = "fewer training.sample_images or training.sample_steps, or a larger training.sample_every,"
        self.allowance = Allowance("preview", advice, run, log, config.training.batch_size)
        self.told_of_first = False

    def draw(self, step: int) -> None:
        """Draws a preview, or fewer images, or none: what there is time for."""
        last = step == self.settings.steps or self.signals.late
        count = self.preview.affordable(self.allowance.budget, self.log.images_per_second(step), last)
        if count < self.preview.count:
            self.allowance.too_little(step, f"a preview of {count} images" if count else "")
        if not count:
            return
        self._tell_of_first_weights(step)
        with self.allowance.spending(step, lambda: self.preview.drawing_seconds(count)):
            grid = self.preview.draw(count, self.signals.check)
            write_png(self.run.preview(step), grid)
            self.log.image(step, grid)

    def _tell_of_first_weights(self, step: int) -> None:
        """Says once that the average, of which previews are, is mostly what the run began with."""
        t, ema = self.settings, self.preview.ema
        share = ema.share_of_first(step // t.ema_every)
        if share > 0.5 and not (t.warm_start or self.told_of_first):
            self.told_of_first = True
            logging.warning(
                "step %d: the averaged weights, which this preview is drawn with, are still %.0f%% the first "
                "weights (more steps, training.ema_warmup=true in a new run, or a smaller training.ema_every "
                "help)",
                step, 100 * share,
            )  # fmt: skip


def first_step(config: Config, checkpoints: Checkpoints, ema: ExponentialMovingAverage) -> int:
    """Restores what there is to start from, and returns how many steps are done."""
    step = checkpoints.restore_newest()
    if step is not None:
        if step > config.training.steps:
            raise UserError(
                f"{checkpoints.run} has trained for {step:,} steps already, and training.steps="
                f"{config.training.steps}: ask for more, or use another folder"
            )
        print(f"resuming {checkpoints.run} at step {step:,} of {config.training.steps:,}", flush=True)
        return step
    if config.training.warm_start:
        warm_start(config, ema)
    return 0


def warm_start(config: Config, ema: ExponentialMovingAverage) -> None:
    """Starts the weights and their averages from another run's averages, and says so.

    A network of two patch sizes may start from one of the small size alone (`with_large_patches`), one whose
    images and patches are some times as large from the smaller one (`for_larger_images`), and one that is
    told of changes to images from one that is not, or the other way round (`with_augmentation`).
    """
    run = RunFolder(config.training.warm_start)
    weights, partly = run.newest_weights(), config.training.warm_start_partly
    shapes = dict(zip(variable_names(ema.variables), [v.shape for v in ema.variables]))
    adapt = partial(with_large_patches, shapes=shapes, patch_size=config.network.patch_size)
    other = run.config()
    times = times_as_large(config, other)
    if times > 1:
        patch_size = other.network.patch_size
        adapt = partial(for_larger_images, shapes=shapes, patch_size=patch_size, times=times)
        print(f"images and patches are {times} times as large as those of {run.path}", flush=True)
    try:
        left = ema.load(
            weights, into_variables=True, partly=partly, adapt=lambda a: with_augmentation(adapt(a), shapes)
        )
    except UserError as error:
        also = "" if partly else "; training.warm_start_partly=true takes what fits of another network"
        raise UserError(f"training.warm_start={config.training.warm_start}: {error}{also}") from error
    print(f"starting from {weights}", flush=True)
    if left:
        print(f"without what does not fit: {', '.join(left)}", flush=True)


def times_as_large(config: Config, other: Config) -> int:
    """How many times as large its images and its patches both are as another's; 1 where they are not."""
    times = config.network.patch_size // other.network.patch_size
    sides = [times * side for side in other.data.image_shape[:2]]
    same_grid = sides == list(config.data.image_shape[:2])
    return times if same_grid and config.network.patch_size == times * other.network.patch_size else 1


def training_state(model: PatchedDiffusion) -> tf.train.Checkpoint:
    """What is saved of a model: parameters, optimizer with its step count, and the count of bad steps."""
    # Made before restoring, so that a checkpoint without them is noticed.
    stack.create_slots(model.optimizer, model.network.trainable_variables)
    return tf.train.Checkpoint(
        network=model.network, optimizer=model.optimizer, bad_steps=model.bad_steps.variable
    )


def train_pipeline(config: Config, info: data.DatasetInfo, start: int) -> Callable:
    """The function that makes each worker's share of the training batches from step `start` on."""

    def load(context: tf.distribute.InputContext) -> tf.data.Dataset:
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


class Signals:
    """Notes SIGTERM and SIGINT instead of dying of them; a second one ends the process at once.

    Attributes:
      late: whether the minutes that a command may train are over, as far as the workers have agreed.
    """

    def __init__(self, workers: Workers, minutes: float = 0.0):
        """`minutes`: how long to train; 0: without a limit."""
        self.received, self.late = "", False
        self.workers, self._minutes, self._begin = workers, minutes, time.monotonic()

    def __enter__(self):
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        end_at_once_next_time()
        self.received = signal.Signals(number).name

    @property
    def seconds_left(self) -> float:
        """What is left of the minutes."""
        return max(60 * self._minutes - (time.monotonic() - self._begin), 0.0)

    def advance(self, bar: tqdm, steps: int) -> None:
        """Moves the bar of training, and has it tell of the minutes that are left."""
        if self._minutes:
            bar.set_description_str(f"train, {tqdm.format_interval(self.seconds_left)} left", refresh=False)
        bar.update(steps)

    @property
    def name(self) -> str:
        """The signal that was received, here or elsewhere."""
        return self.received or "a signal to another worker"

    def agreed(self, step: int, every: int) -> tuple[str, bool]:
        """The signal to stop for after this step, or "", and whether time is over.

        Several workers agree each `every` steps.
        """
        stop, late = bool(self.received), self._minutes > 0 and not self.seconds_left
        if not self.workers.alone:
            due = step % every == 0
            stop, late = due and self.workers.any(stop), due and self._minutes > 0 and self.workers.any(late)
        self.late = late
        return self.name if stop else "", late

    def check(self) -> None:
        """Raises Interrupted if this process has received a signal."""
        if self.received:
            raise Interrupted(together=False)

    def check_together(self) -> None:
        """Raises Interrupted if any worker has; all workers must call it at the same point."""
        if self.workers.any(bool(self.received)):
            raise Interrupted(together=True)
