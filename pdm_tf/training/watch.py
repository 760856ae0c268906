"""What watches a run: a list of (every so many steps, do this), held-out losses and previews among them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from pdm_tf import data
from pdm_tf.config.fields import Config, SamplingConfig
from pdm_tf.images import image_grid
from pdm_tf.run import RunFolder, training_seconds
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.sampler import Sampler, steps_of_share
from pdm_tf.stack import keras
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.metrics import MetricsLog, measured
from pdm_tf.training.model import PatchedDiffusion

SHARE = 0.05  # of a run's time that each way of showing it may take
LEAST_SECONDS = 10.0  # what the last preview may take, however short the run
LEAST_IMAGES = 4  # fewer are not worth a preview on the way


class Interrupted(Exception):  # noqa: N818 (not an error: somebody asked for it)
    """A signal came while a run was being shown; `together`: all workers know."""

    def __init__(self, together: bool):
        super().__init__()
        self.together = together


@dataclasses.dataclass(frozen=True)
class Watch:
    """Something to do now and then, with the number of the step that is done.

    Attributes:
      every: the period, in steps.
      do: what.
      at_end: also after the last step.
      at_stop: also when a signal ends the run before it.
      done: whether it has been done at a step, by an earlier part of the run; the same in all workers.
    """

    every: int
    do: Callable[[int], None]
    at_end: bool = False
    at_stop: bool = False
    done: Callable[[int], bool] = lambda step: True

    def look(self, step: int, last: bool, stop: bool) -> None:
        """Does it if it is due."""
        if step % self.every == 0 or (self.at_end and last) or (self.at_stop and stop):
            self.do(step)

    def make_up(self, step: int, last: bool) -> None:
        """Does what was due after the step that a run goes on from, and was left undone by a stop."""
        if step and not self.done(step):
            self.look(step, last, False)


class Budget:
    """The time that one way of showing a run may take: a share of all its time so far.

    What it decides changes what is shown, and never the weights.
    """

    def __init__(
        self,
        share: float = SHARE,
        elapsed: float = 0.0,
        used: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`elapsed`, `used`: the seconds of the run's earlier parts, and those that went into this."""
        self.share, self.used, self._clock = share, used, clock
        self._begin = clock() - elapsed

    @property
    def elapsed(self) -> float:
        """The run's seconds so far."""
        return self._clock() - self._begin

    @property
    def left(self) -> float:
        """The seconds that may be spent now; negative after something took longer than was thought."""
        return self.share * self.elapsed - self.used

    def allows(self, seconds: float) -> bool:
        """Whether something may run now that takes so long, as it did the last time."""
        return seconds <= self.left

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Counts what the block takes, however it ends."""
        before = self._clock()
        try:
            yield
        finally:
            self.used += self._clock() - before


class Allowance:
    """What a run gives one way of showing it: a budget, one word where it does not do, the seconds logged."""

    def __init__(self, what: str, advice: str, run: RunFolder, log: MetricsLog, batch_size: int):
        """`what` is shown: "preview"; `advice`: which settings make it cheaper."""
        self.what, self.advice, self.log, self.told = what, advice, log, False
        self.budget = Budget(**time_so_far(run.metrics(), batch_size, self.seconds))

    @property
    def seconds(self) -> str:
        """The name of its seconds in the metrics."""
        return f"{self.what}_seconds"

    def too_little(self, step: int, instead: str = "") -> None:
        """Says, the first time, that there is none of it, or what there is instead."""
        if not self.told:
            self.told = True
            logging.warning(
                "step %d: %s, so that this takes no more than %.0f%% of the time (%s help)",
                step, instead or f"no {self.what}", 100 * self.budget.share, self.advice,
            )  # fmt: skip

    @contextlib.contextmanager
    def spending(self, step: int, at_most: Callable[[], float] = lambda: math.inf) -> Iterator[None]:
        """Counts what the block takes, however it ends, and logs it if it ends well.

        `at_most` tells, after the block, of how many seconds no more than that count: to make a graph takes
        time once, and would count for all that is shown of a short run.
        """
        before = self.budget.used
        with self.budget.spending():
            yield
        self.budget.used = min(self.budget.used, before + at_most())
        self.log.scalars(step, {self.seconds: self.budget.used - before})


def steps_of(metrics: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The steps at which a run's metrics (`RunFolder.metrics`) have a value of that name, float64 (n,)."""
    return metrics[name][:, 0] if name in metrics else np.zeros(0)


def time_so_far(metrics: dict[str, np.ndarray], batch_size: int, name: str) -> dict[str, float]:
    """What a run's metrics tell a `Budget`: `elapsed`, and `used` under a name in ..._seconds, in seconds."""
    spent = {key: float(rows[:, 1].sum()) for key, rows in metrics.items() if key.endswith("_seconds")}
    elapsed = training_seconds(metrics, batch_size) + sum(spent.values())
    return {"elapsed": elapsed, "used": spent.get(name, 0.0)}


def images_within(seconds: float, each: float, most: int) -> int:
    """How many images of `each` seconds to draw: `most`, or the largest power of two that there is time for.

    Few different numbers: each is a graph to be traced.
    """
    number = int(min(seconds / max(each, 1e-9), most)) if seconds > 0 else 0
    return most if number == most else 2 ** (number.bit_length() - 1) if number else 0


class Evaluation:
    """Losses on the first images of the held-out split, each time with the same noise."""

    def __init__(
        self,
        model: PatchedDiffusion,
        config: Config,
        info: data.DatasetInfo,
        strategy: tf.distribute.Strategy,
    ):
        held_out = data.held_out_split(info)
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

    def run(self, check: Callable[[], None] = lambda: None) -> dict[str, float]:
        """The means of the model's losses; `check` is called before each batch, and may raise to end it."""
        try:
            names = self.model.evaluate(
                self.batches, steps=self.steps, verbose=0, return_dict=True, callbacks=[_Before(check)]
            )
        except Interrupted:
            self.model.reset_metrics()
            raise
        # Keras returns the sum of the workers' means: the metrics themselves know better.
        values = measured(metric for metric in self.model.metrics if metric.name in names)
        self.model.reset_metrics()
        return values


class _Before(keras.callbacks.Callback):
    """Calls something before each batch of an evaluation."""

    def __init__(self, do: Callable[[], None]):
        super().__init__()
        self._do = do

    def on_test_batch_begin(self, batch, logs=None):
        """Keras' hook."""
        self._do()


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
        self.sampling = preview_sampling(config)
        # As many at a time as a train step has in memory, in equal shares.
        batch = config.training.batch_size // config.training.grad_accum
        if self.sampling.guidance != 1.0:
            batch //= 2
        self.replicas = strategy.num_replicas_in_sync
        self.most_at_once = max(batch // self.replicas, 1) * self.replicas
        self.sampler: Sampler | None = None

    def affordable(self, budget: Budget, images_per_second: float, last: bool) -> int:
        """How many images there is time for now; the last preview of a run has some in any case.

        Args:
          images_per_second: of training, which says what an image costs before one has been drawn.
        """
        each = self.seconds_per_image(images_per_second)
        seconds = max(budget.left, LEAST_SECONDS) if last else budget.left
        count = images_within(seconds, each, self.count)
        if last:
            return max(count, 1)
        return count if count >= min(LEAST_IMAGES, self.count) else 0

    def seconds_per_image(self, images_per_second: float) -> float:
        """What an image took, or is likely to take before one has been drawn, from the speed of training."""
        if self.sampler and self.sampler.seconds_per_image:
            return self.sampler.seconds_per_image
        # Of a train step about a third is the forward pass.
        passes = sum(self.sampling.steps) * (1 if self.sampling.guidance == 1.0 else 2)
        return passes / (3.0 * images_per_second)

    def drawing_seconds(self, count: int) -> float:
        """What `count` images took to draw, the making of graphs left out; infinite before any was drawn."""
        return count * (self.sampler.seconds_per_image or 0.0) if self.sampler else math.inf

    def draw(self, count: int | None = None, check: Callable[[], None] = lambda: None) -> np.ndarray:
        """The grid of samples of now, uint8 (height, width, C), with a bar.

        Args:
          count: how many images; by default all.
          check: called about every second; what it raises ends the drawing.
        """
        count = self.count if count is None else count
        self._need_sampler()
        with self.ema.applied():
            return image_grid(np.concatenate(list(self.batches(count, self.labels, check, "preview"))))

    def batches(
        self, count: int, labels: np.ndarray, check: Callable[[], None], what: str
    ) -> Iterator[np.ndarray]:
        """Samples of the weights as they are, uint8 (B, H, W, C), in order, with a bar.

        Args:
          count, check: as in `draw`.
          labels: int32 (N,), of the images in turn.
          what: for the bar.
        """
        self._need_sampler()
        # Whole batches of one size, so that all run one graph.
        batch = min(-(-count // self.replicas) * self.replicas, self.most_at_once)
        seed = self.config.seed
        samples = SampleBatches(self.sampler, seed, count, batch, labels, title=what, leave_bar=False)
        return samples.batches(check=check)

    def _need_sampler(self) -> None:
        if self.sampler is None:
            self._make_sampler()

    def _make_sampler(self) -> None:
        """Sets `sampler` and `labels`."""
        denoiser = self.denoiser
        edit, self.labels = None, ()
        if denoiser.t_stop < len(denoiser.schedule):
            begin, self.labels = self._first_images(self.count)
            edit = Edit(begin, strength=1.0)
        steps = steps_of_share(self.sampling.steps, denoiser)
        with self.strategy.scope():
            self.sampler = Sampler(denoiser, dataclasses.replace(self.sampling, steps=steps), edit)

    def _first_images(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The held-out split's first images, float32 (count, H, W, C) in [-1, 1], and labels, (count,)."""
        batches = data.load_batches(
            self.info, split=data.held_out_split(self.info) or "train", batch_size=count,
            seed=self.config.seed, shuffle=False, image_shape=self.config.data.image_shape,
        )  # fmt: skip
        images, labels, _ = next(batches.as_numpy_iterator())
        return images, labels


def preview_sampling(config: Config) -> SamplingConfig:
    """How previews are drawn: as the config says, or by a fast solver where that takes long."""
    sampling, most = config.sampling, config.training.sample_steps
    if sum(sampling.steps) <= most:
        return sampling
    return dataclasses.replace(sampling, sampler="dpm_solver", spacing="logsnr", steps=(most,))
