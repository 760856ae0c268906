"""A trained network and its noise schedule, seen as one function: (z_t, t, labels) -> predicted x and u."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import tensorflow as tf

from flags.config import Config
from flags.errors import UserError
from pdm_tf.diffusion.predictions import predicted_x
from pdm_tf.diffusion.schedules import NoiseSchedule, linear_schedule
from pdm_tf.networks.unet import UNet
from pdm_tf.weights import assign_arrays, read_arrays


class Denoiser:
    """Predicts x, whatever its network predicts, and u, the variance's place between b_tilde and beta."""

    def __init__(self, network: tf.keras.Model, schedule: NoiseSchedule, prediction: str = "x"):
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.image_shape = network.image_shape
        self.num_classes = network.num_classes
        self.conditional = network.class_conditioning != "none"

    def __call__(
        self,
        z: tf.Tensor,
        t: tf.Tensor,
        labels: tf.Tensor | None,
        dropout_key: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """z float32 (B, H, W, C), t int32 (B,), labels int32 (B,) -> x_theta and u, float32 (B, H, W, C).

        `labels` are ignored without class conditioning; the null label is `num_classes`.
        """
        output, u = self.network(z, t, labels, dropout_key)
        return predicted_x(self.prediction, output, z, self.schedule, t), u


def build_network(config: Config, precision: str = "float32", recompute: bool = False) -> UNet:
    """The config's network, with fresh weights, built. `precision` and `recompute` are those of `UNet`."""
    return UNet(
        image_shape=config.data.image_shape,
        num_classes=config.data.num_classes,
        precision=precision,
        recompute=recompute,
        **dataclasses.asdict(config.network),
    )


def build_schedule(config: Config) -> NoiseSchedule:
    """The config's full noise schedule."""
    d = config.diffusion
    return linear_schedule(d.num_timesteps, d.beta_start, d.beta_end)


def read_config(run_dir: str | os.PathLike) -> Config:
    """Reads a run folder's config.json.

    Raises:
      UserError: there is none, or it is not valid.
    """
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{run_dir} holds no run (no config.json): train one with --mode=train --run_dir={run_dir}"
        )
    return Config.from_json(path.read_text(), str(path))


def newest_ema(run_dir: str | os.PathLike) -> Path:
    """The newest averaged weights of a run.

    Raises:
      UserError: there are none yet.
    """
    files = sorted((Path(run_dir) / "ema").glob("step_*.npz"))
    if not files:
        raise UserError(f"{run_dir}/ema holds no weights yet: train until the first checkpoint is written")
    return files[-1]


def load_denoiser(run_dir: str | os.PathLike) -> tuple[Config, Denoiser]:
    """The config and the denoiser, with its newest EMA weights, of a run folder.

    Raises:
      UserError: no run, no weights, or damaged ones.
    """
    config = read_config(run_dir)
    network = build_network(config)
    weights = newest_ema(run_dir)
    assign_arrays(network.trainable_variables, read_arrays(weights), weights)
    return config, Denoiser(network, build_schedule(config), config.diffusion.prediction)
