"""The state of a run: model, optimizer and averages, as its newest checkpoint or a warm start has them."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from pdm_tf.config.fields import Config
from pdm_tf.errors import UserError
from pdm_tf.networks.warm_start import for_other_images, with_augmentation, with_large_patches
from pdm_tf.run import RunFolder, run_or_shipped
from pdm_tf.training.checkpoints import Checkpoints
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.model import PatchedDiffusion, build_model
from pdm_tf.weights import assign_arrays, completed, read_arrays, variable_names

SHOWN = 5  # names of what does not fit of another run's weights


class State(NamedTuple):
    """A model with its optimizer, averages of its weights, the checkpoints of both, and the steps done."""

    model: PatchedDiffusion
    ema: ExponentialMovingAverage
    checkpoints: Checkpoints
    step: int


def restore(config: Config, run: RunFolder, strategy: tf.distribute.Strategy) -> State:
    """The state of the newest checkpoint; without one a new one, or that of a warm start."""
    settings = config.training
    with strategy.scope():
        model = build_model(config, settings.precision)
    variables = model.network.trainable_variables
    ema = ExponentialMovingAverage(variables, settings.ema_decay, settings.ema_warmup, settings.ema_lengths)
    saved = tf.train.Checkpoint(
        network=model.network, optimizer=model.optimizer, bad_steps=model.bad_steps.variable
    )
    checkpoints = Checkpoints(run, saved, ema, settings.keep_checkpoints, settings.keep_every)
    step = checkpoints.restore_newest()
    if step is None:
        if run.has_begun():
            raise UserError(
                f"{run} holds averaged weights and no checkpoint to go on from: begin with them in another "
                f"folder by training.warm_start={run}, or delete {run} to begin again from nothing"
            )
        if settings.warm_start:
            warm_start(config, ema)
        return State(model, ema, checkpoints, 0)
    if step > settings.steps:
        raise UserError(
            f"{run} has trained for {step:,} steps already, and training.steps={settings.steps}: ask for "
            "more, or use another folder"
        )
    more = "" if step < settings.steps else ": it is finished, and more training.steps would go on"
    print(f"resuming {run} at step {step:,} of {settings.steps:,}{more}", flush=True)
    return State(model, ema, checkpoints, step)


def warm_start(config: Config, ema: ExponentialMovingAverage) -> None:
    """Sets the weights and their averages to another run's averages, and says what of them does not fit.

    A network of two patch sizes may start from one of the small size alone (`with_large_patches`) or of the
    large one, and any network from one of other patches or colours (`for_other_images`), and with an
    augmentation input from one without, or the other way round (`with_augmentation`). UserError if less than
    half of them fits.
    """
    run = run_or_shipped(config.training.warm_start)
    weights = run.newest_weights()
    other = run.config()
    shapes = dict(zip(variable_names(ema.variables), [v.shape for v in ema.variables]))
    here, there = ((c.network.patch_size, c.data.image_shape[-1]) for c in (config, other))
    try:
        arrays = for_other_images(read_arrays(weights), shapes, here, there)
        arrays = with_augmentation(with_large_patches(arrays, shapes, config.network.patch_size), shapes)
        arrays, left = completed(ema.variables, arrays, weights)
    except UserError as error:
        raise UserError(f"training.warm_start={config.training.warm_start}: {error}") from error
    assign_arrays(ema.variables, arrays, weights)
    ema.restart()
    print(f"starting from {weights}", flush=True)
    if left:
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        print(f"without what does not fit: {', '.join(left[:SHOWN])}{more}", flush=True)
