"""A trained network, or several experts, and the noise schedule: (z_t, t, labels) -> predicted x and u."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from flags.config import Config, differences
from flags.errors import UserError
from pdm_tf.diffusion.predictions import predicted_x
from pdm_tf.diffusion.schedules import NoiseSchedule, linear_schedule
from pdm_tf.networks.unet import UNet
from pdm_tf.weights import assign_arrays, read_arrays

# A run folder that ships with the project: what --mode=sample draws from before anything has been trained.
PRETRAINED = Path(__file__).parent / "pretrained" / "emoji64"


class Denoiser:
    """Predicts x, whatever its network predicts, and u, the variance's place between b_tilde and beta.

    It answers for t_start <= t < t_stop, which for most is the whole process.
    """

    def __init__(
        self,
        network: tf.keras.Model,
        schedule: NoiseSchedule,
        prediction: str = "x",
        t_start: int = 0,
        t_stop: int | None = None,
    ):
        self.network = network
        self.schedule = schedule
        self.prediction = prediction
        self.t_start = t_start
        self.t_stop = len(schedule) if t_stop is None else t_stop
        self.image_shape = network.image_shape
        self.num_classes = network.num_classes
        self.conditional = network.class_conditioning != "none"
        self.variables = network.trainable_variables

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


class Experts:
    """Denoisers of neighbouring intervals of t, used as one `Denoiser` (Section 4.1, "model splitting").

    An expert runs if any t of the batch lies in its interval, then on the whole batch, and each image takes
    the answer of its own expert. So a batch at one t, as in sampling, costs one network, and a batch of
    mixed t costs every network whose interval occurs in it. All shapes are static, as XLA needs.
    """

    def __init__(self, experts: Sequence[Denoiser]):
        """`experts` from the least noise to the most, each beginning where the one before it stops.

        Raises:
          ValueError: they leave a gap, or overlap.
        """
        if any(one.t_stop != following.t_start for one, following in zip(experts, experts[1:])):
            raise ValueError(f"intervals that do not meet: {[(e.t_start, e.t_stop) for e in experts]}")
        first = experts[0]
        self.experts = list(experts)
        self.t_start, self.t_stop = first.t_start, experts[-1].t_stop
        self.schedule = first.schedule
        self.image_shape = first.image_shape
        self.num_classes = first.num_classes
        self.conditional = first.conditional
        self.variables = [variable for expert in experts for variable in expert.variables]

    def __call__(self, z: tf.Tensor, t: tf.Tensor, labels: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """The same function as `Denoiser.__call__`."""
        pred_x, u = tf.zeros_like(z), tf.zeros_like(z)
        for expert in self.experts:
            own = (t >= expert.t_start) & (t < expert.t_stop)
            answer = tf.cond(
                tf.reduce_any(own),
                lambda expert=expert: expert(z, t, labels),
                lambda before=(pred_x, u): before,
            )
            own = own[:, None, None, None]
            pred_x, u = tf.where(own, answer[0], pred_x), tf.where(own, answer[1], u)
        return pred_x, u


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


def read_experts(*run_dirs: str | os.PathLike) -> list[tuple[str, Config]]:
    """The folders and configs of the experts that make up one model, or of the one run that does it alone.

    The experts' intervals of t come from their own configs; they may be named in any order.

    Returns:
      (folder, config) from the least noise to the most.
    Raises:
      UserError: no run, or runs that do not make up one whole process.
    """
    runs = [(str(run_dir), read_config(run_dir)) for run_dir in run_dirs]
    runs.sort(key=lambda run: run[1].diffusion.t_start)
    check_experts(runs)
    return runs


def load_denoiser(*run_dirs: str | os.PathLike) -> tuple[Config, Denoiser | Experts]:
    """The config and the denoiser, with the newest EMA weights, of a run folder or of several experts'.

    The config is that of the expert with the least noise.

    Raises:
      UserError: no run, no weights, damaged ones, or runs that do not make up one whole process.
    """
    runs = read_experts(*run_dirs)
    denoisers = [_load_one(run_dir, config) for run_dir, config in runs]
    if len(denoisers) == 1:
        return runs[0][1], denoisers[0]
    return runs[0][1], Experts(denoisers)


def _load_one(run_dir: str, config: Config) -> Denoiser:
    network = build_network(config)
    weights = newest_ema(run_dir)
    assign_arrays(network.trainable_variables, read_arrays(weights), weights)
    d = config.diffusion
    return Denoiser(network, build_schedule(config), d.prediction, d.t_start, d.t_stop)


SHARED_BY_EXPERTS = (
    "data.dataset", "data.image_shape", "data.num_classes", "data.label_names",
    "diffusion.num_timesteps", "diffusion.beta_start", "diffusion.beta_end",
)  # fmt: skip


def check_experts(runs: Sequence[tuple[str, Config]]) -> None:
    """Checks that runs (folder and config), ordered by t_start, make up one process on the same data.

    Raises:
      UserError: they differ in data or schedule, or leave a gap in t, or overlap.
    """
    names, first = [name for name, _ in runs], runs[0][1]
    covered, before = 0, None
    for name, config in runs:
        changed = differences(first, config)
        for key in SHARED_BY_EXPERTS:
            if key in changed:
                old, new = changed[key]
                raise UserError(
                    f"{names[0]} and {name} cannot be experts of one model: {key} is {old} and {new}"
                )
        if (config.network.class_conditioning == "none") != (first.network.class_conditioning == "none"):
            raise UserError(
                f"{names[0]} and {name} cannot be experts of one model: only one of them knows classes"
            )
        start = config.diffusion.t_start
        if start > covered:
            raise UserError(_missing(names, covered, start))
        if start < covered:
            raise UserError(
                f"{before} and {name} were both trained on t = {start}: name runs whose intervals of t meet "
                "without overlapping"
            )
        covered, before = config.diffusion.t_stop, name
    if covered < first.diffusion.num_timesteps:
        raise UserError(_missing(names, covered, first.diffusion.num_timesteps))


def _missing(names: Sequence[str], start: int, stop: int) -> str:
    was = "was" if len(names) == 1 else "were"
    return (
        f"{' and '.join(names)} {was} not trained on {start} <= t < {stop}: name the run of that interval "
        f"too, as in --run_dir={','.join(names)},RUN"
    )
