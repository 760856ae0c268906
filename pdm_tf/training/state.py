"""The state of a run: model, optimizer and averages, as its newest checkpoint or a warm start has them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import tensorflow as tf

from pdm_tf import stack
from pdm_tf.config.fields import Config
from pdm_tf.errors import UserError
from pdm_tf.networks.warm_start import for_larger_images, with_augmentation, with_large_patches
from pdm_tf.run import RunFolder
from pdm_tf.training.checkpoints import Checkpoints
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import PatchedDiffusion, build_model
from pdm_tf.weights import variable_names


class State(NamedTuple):
    """A model with its optimizer, averages of its weights, the checkpoints of both, and the steps done."""

    model: PatchedDiffusion
    ema: ExponentialMovingAverage
    checkpoints: Checkpoints
    step: int


def restore(config: Config, run: RunFolder, strategy: tf.distribute.Strategy) -> State:
    """The state of the newest checkpoint, or a new one.

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


def first_step(config: Config, checkpoints: Checkpoints, ema: ExponentialMovingAverage) -> int:
    """Restores the newest checkpoint, or else the weights of a warm start; returns the steps done."""
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
    """Sets the weights and their averages to another run's averages.

    A network of two patch sizes may start from one of the small size alone (`with_large_patches`), a network
    of larger images and patches from a smaller one (`for_larger_images`), and a network with an augmentation
    input from one without, or the other way round (`with_augmentation`).
    """
    run = RunFolder(config.training.warm_start)
    weights = run.newest_weights()
    partly = config.training.warm_start_partly
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
    """The ratio of `config`'s image and patch sides to those of `other`; 1 if the two ratios differ."""
    times = config.network.patch_size // other.network.patch_size
    sides = [times * side for side in other.data.image_shape[:2]]
    same_grid = sides == list(config.data.image_shape[:2])
    return times if same_grid and config.network.patch_size == times * other.network.patch_size else 1


def training_state(model: PatchedDiffusion) -> tf.train.Checkpoint:
    """The part of a model that checkpoints hold: parameters, optimizer with its step count, bad steps."""
    # Made before restoring, so that a checkpoint without them is noticed.
    stack.create_slots(model.optimizer, model.network.trainable_variables)
    return tf.train.Checkpoint(
        network=model.network, optimizer=model.optimizer, bad_steps=model.bad_steps.variable
    )
