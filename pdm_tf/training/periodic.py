"""Periodic work of a run, a list of (period in steps, work); held-out losses and previews among it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from pdm_tf import data
from pdm_tf.config.fields import Config, SamplingConfig
from pdm_tf.denoiser import Denoiser
from pdm_tf.images import image_grid
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.sampler import Sampler, steps_of_share
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.metrics import measured
from pdm_tf.training.model import PatchedDiffusion


class Interrupted(Exception):  # noqa: N818 (not an error: somebody asked for it)
    """A signal came during a preview or a score."""


@dataclasses.dataclass(frozen=True)
class Periodic:
    """Work with a period in steps."""

    every: int
    do: Callable[[int], None]  # the work, called with the number of steps that are done
    at_end: bool = False  # also due after the last step
    at_stop: bool = False  # also due when a signal ends the run before it
    # Whether an earlier part of the run has done the work of a step; the same in all workers.
    done: Callable[[int], bool] = lambda step: True

    def do_if_due(self, step: int, last: bool = False, stop: bool = False) -> None:
        """Does the work after `step`, which may be the last one, or one at which the run is stopped."""
        if step % self.every == 0 or (self.at_end and last) or (self.at_stop and stop):
            self.do(step)

    def catch_up(self, step: int, last: bool) -> None:
        """Does the work of `step`, from which a run goes on, if it was due and a stop left it undone."""
        if step and not self.done(step):
            self.do_if_due(step, last)


class HeldOutLosses:
    """Losses on the first images of the held-out split, each time with the same noise.

    The images are whole. Where training's are crops the losses, sums over pixels, are those of a crop's area.
    """

    def __init__(
        self,
        model: PatchedDiffusion,
        config: Config,
        info: data.DatasetInfo,
        strategy: tf.distribute.Strategy,
    ):
        self.model = model
        self.area = config.data.trained_area
        size = images_in_memory(config, strategy) * strategy.num_replicas_in_sync
        self.steps = math.ceil(config.training.eval_batches * config.training.batch_size / size)
        split = data.held_out_split(info)
        self.batches = distributed_batches(config, info, split, size, strategy, shuffle=False)

    def measure(self) -> dict[str, float]:
        names = self.model.evaluate(self.batches, steps=self.steps, verbose=0, return_dict=True)
        # Keras returns the sum of the workers' means: the metrics themselves know better.
        values = measured(metric for metric in self.model.metrics if metric.name in names)
        self.model.reset_metrics()
        summed = self.model.means.losses
        return {name: value * self.area if name in summed else value for name, value in values.items()}


def distributed_batches(
    config: Config,
    info: data.DatasetInfo,
    split: str,
    batch_size: int,
    strategy: tf.distribute.Strategy,
    start: int = 0,
    **options,
) -> tf.distribute.DistributedDataset:
    """Batches of a strategy, from that of number `start` on; each worker loads its own share of every batch.

    `batch_size` is that of the global batch; `options` are those of `data.load_batches`.
    """

    def load_share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return data.load_batches(
            info,
            split=split,
            image_shape=config.data.image_shape,
            batch_size=context.get_per_replica_batch_size(batch_size),
            start_batch=start * context.num_replicas_in_sync // context.num_input_pipelines,
            input_pipelines=context.num_input_pipelines,
            input_pipeline_id=context.input_pipeline_id,
            **options,
        )

    return strategy.distribute_datasets_from_function(load_share)


def images_in_memory(config: Config, strategy: tf.distribute.Strategy) -> int:
    """How many whole images are as many pixels as a train step has on one replica at a time; at least 1."""
    training = config.training
    crops = training.batch_size // (training.grad_accum * strategy.num_replicas_in_sync)
    return max(1, int(crops * config.data.trained_area))


@dataclasses.dataclass(eq=False)
class Previews:
    """Samples of the averaged weights, always from the same noise.

    A network of an interval of t is sampled on that interval: to its x_theta at the cleanest t, and from
    images of the data set, diffused to its noisiest t, unless that is pure noise.
    """

    denoiser: Denoiser
    ema: ExponentialMovingAverage
    config: Config
    info: data.DatasetInfo
    strategy: tf.distribute.Strategy  # whose replicas, all in this process, share the images
    most: int  # images on each replica at a time

    def __post_init__(self):
        self.sampling = preview_sampling(self.config)
        passes = 1 if self.sampling.guidance == 1.0 else 2
        self.batch_size = max(self.most // passes, 1) * self.strategy.num_replicas_in_sync

    def grid(self, check: Callable[[], None] = lambda: None) -> np.ndarray:
        """A grid of samples, uint8 (height, width, C); what `check`, called every second, raises ends it."""
        with self.ema.applied():
            count = self.config.training.sample_images
            images = np.concatenate(list(self.batches(count, self._beginning[1], "preview", check)))
        return image_grid(images)

    def batches(
        self, count: int, labels: Sequence[int], title: str, check: Callable[[], None] = lambda: None
    ) -> Iterator[np.ndarray]:
        """Samples of the weights as they are, uint8 (B, H, W, C); `labels`: those in turn, () for all."""
        replicas = self.strategy.num_replicas_in_sync
        batch_size = min(self.batch_size, -(-count // replicas) * replicas)
        samples = SampleBatches(
            self._sampler, self.config.seed, count, batch_size, labels, title=title, leave_bar=False
        )
        return samples.batches(check=check)

    @functools.cached_property
    def _sampler(self) -> Sampler:
        steps = steps_of_share(self.sampling.steps, self.denoiser)
        edit, _ = self._beginning
        with self.strategy.scope():
            return Sampler(self.denoiser, dataclasses.replace(self.sampling, steps=steps), edit)

    @functools.cached_property
    def _beginning(self) -> tuple[Edit | None, Sequence[int]]:
        """Images of the data to begin from, and their labels; of pure noise None, and () for all classes."""
        if self.denoiser.t_stop == len(self.denoiser.schedule):
            return None, ()
        batches = data.load_batches(
            self.info,
            split=data.held_out_split(self.info) or "train",
            batch_size=self.config.training.sample_images,
            shuffle=False,
            image_shape=self.config.data.image_shape,
        )
        batch = next(batches.as_numpy_iterator())
        return Edit(batch["image"], strength=1.0), batch["label"]


def preview_sampling(config: Config) -> SamplingConfig:
    """The config's way of sampling, or a fast solver in `training.sample_steps` where that takes more."""
    sampling = config.sampling
    most = config.training.sample_steps
    if config.is_student or sum(sampling.steps) <= most:
        return sampling
    return dataclasses.replace(sampling, sampler="dpm_solver", spacing="logsnr", steps=(most,))
