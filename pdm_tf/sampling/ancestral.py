"""Ancestral sampling with a learned or a fixed variance (Section 2.1, Appendix C)."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from pdm_tf.diffusion.process import learned_log_variance, posterior_mean
from pdm_tf.diffusion.schedules import NoiseSchedule, at
from pdm_tf.sampling.loop import run_steps

VARIANCES = ("learned", "small", "large")


def ancestral(
    denoise: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    schedule: NoiseSchedule,
    z: tf.Tensor,
    noise: Callable[[tf.Tensor], tf.Tensor],
    variance: str = "learned",
    frames: int = 1,
) -> tf.Tensor:
    """z_s ~ N(posterior_mean(z_t, x_theta), sigma^2) for each kept step, the last returning x_theta itself.

    Args:
      denoise: (z (B, H, W, C), t int32 ()) -> x_theta and u, both (B, H, W, C).
      schedule: the kept steps; see `NoiseSchedule.keep`.
      z: (B, H, W, C), z_t of the schedule's last step; its dtype is that of the computation.
      noise: standard normal (B, H, W, C) for the step of index i of the schedule.
      variance: sigma^2, see `log_variance`.
      frames: how many x_theta to return.
    Returns:
      x_theta at `frames` evenly spaced steps, (frames, B, H, W, C). The last one is the image.
    """
    timesteps, last = tf.constant(schedule.timesteps), len(schedule) - 1

    def step(k: tf.Tensor, z: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        i = last - k
        pred_x, u = denoise(z, timesteps[i])
        return pred_x, [ancestral_step(z, pred_x, u, schedule, i, noise(i), variance)]

    return run_steps(step, len(schedule), [z], frames)[1]


def ancestral_step(
    z: tf.Tensor,
    pred_x: tf.Tensor,
    u: tf.Tensor,
    schedule: NoiseSchedule,
    i: tf.Tensor,
    noise: tf.Tensor,
    variance: str = "learned",
) -> tf.Tensor:
    """A sample of p_theta(z_s | z_t), s being the kept step before t, of index i; at i = 0 it is x_theta."""
    std = tf.exp(0.5 * log_variance(variance, u, schedule, i))
    return tf.where(i > 0, posterior_mean(z, pred_x, schedule, i) + std * noise, pred_x)


def log_variance(variance: str, u: tf.Tensor, schedule: NoiseSchedule, i: tf.Tensor) -> tf.Tensor:
    """log sigma^2 of p_theta(z_s | z_t).

    "learned": log sigma^2 = u log b_tilde + (1 - u) log beta (Appendix C). "small": b_tilde, right for data
    that are one point. "large": beta, right for data that are standard normal (Ho et al., 2020).
    """
    if variance == "learned":
        return learned_log_variance(u, schedule, i)
    if variance == "small":
        return at(schedule.log_beta_tilde, i, u.dtype)
    if variance == "large":
        return at(schedule.log_beta, i, u.dtype)
    raise ValueError(f"variance={variance!r}: use one of {', '.join(VARIANCES)}")
