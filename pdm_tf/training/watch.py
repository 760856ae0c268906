"""What watches a run: a list of (every so many steps, do this), held-out losses and previews among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from flags.config import Config
from pdm_tf import data
from pdm_tf.images import image_grid, to_uint8
from pdm_tf.sampling.sampler import Sampler, cycled_labels, steps_of_share
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import PatchedDiffusion


@dataclasses.dataclass(frozen=True)
class Watch:
    """Something to do now and then, with the number of the step that is done.

    Attributes:
      every: the period, in steps.
      do: what.
      at_end: also after the last step.
      at_stop: also when a signal ends the run before it.
    """

    every: int
    do: Callable[[int], None]
    at_end: bool = False
    at_stop: bool = False

    def look(self, step: int, last: bool, stop: bool) -> None:
        """Does it if it is due."""
        if step % self.every == 0 or (self.at_end and last) or (self.at_stop and stop):
            self.do(step)


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
        self.labels = cycled_labels(denoiser, batch)
        if denoiser.t_stop < len(denoiser.schedule):
            begin, self.labels = self._first_images(batch)
        sampling = self.config.sampling
        steps = steps_of_share(sampling.steps, denoiser)
        with self.strategy.scope():
            sampling = dataclasses.replace(sampling, steps=steps, strength=1.0)
            self.sampler = Sampler(denoiser, sampling, image=begin)

    def _first_images(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The held-out split's first images, float32 (count, H, W, C) in [-1, 1], and labels, (count,)."""
        batches = data.load_batches(
            self.info, split=held_out_split(self.info) or "train", batch_size=count, seed=self.config.seed,
            shuffle=False, image_shape=self.config.data.image_shape,
        )  # fmt: skip
        images, labels, _ = next(batches.as_numpy_iterator())
        return images, labels


def held_out_split(info: data.DatasetInfo) -> str | None:
    """The split to measure a run on, if there is one."""
    return next((split for split in ("validation", "test") if info.num_examples.get(split)), None)
