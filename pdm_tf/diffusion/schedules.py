"""Noise schedules: float64 tables of the variance-preserving process (Eqs. 1 and 2), and their levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import tensorflow as tf

LARGEST_BETA = 0.999  # of a cosine, whose last steps would leave nothing of the data


@dataclass(frozen=True, eq=False)
class Level:
    """How much of z_t = signal * x + noise * eps is data, and how much is noise.

    Attributes:
      t: int32 () or (B,), the timestep that a network sees; -1 of the data itself.
      signal: sqrt(alpha_t).
      noise: sqrt(1 - alpha_t).
      snr: the signal-to-noise ratio alpha_t / (1 - alpha_t).
    """

    t: tf.Tensor
    signal: tf.Tensor
    noise: tf.Tensor
    snr: tf.Tensor


@dataclass(frozen=True, eq=False)
class NoiseLevel(Level):
    """One timestep of a schedule, or one for each image of a batch, ready to broadcast over images.

    All but `t` were computed in float64 and are () or (B, 1, 1, 1), in the dtype of the images.

    Attributes:
      root_snr: sqrt(SNR).
      mean_residual, mean_scale: coefficients of the posterior's mean, beta / (1 - alpha_t) and
        1 / sqrt(1 - beta); see `process.posterior_mean`.
      log_beta: log beta, beta = 1 - alpha_t / alpha_s being the variance of q(z_t | z_s).
      log_beta_tilde: log b_tilde, the log variance of q(z_s | z_t, x).
      before: the level of the schedule's timestep s before t; of the first one the data, whose noise is 0.
    """

    root_snr: tf.Tensor
    mean_residual: tf.Tensor
    mean_scale: tf.Tensor
    log_beta: tf.Tensor
    log_beta_tilde: tf.Tensor
    before: Level


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The timesteps of a diffusion process, from the least to the most noise.

    In the whole process the index i of a timestep is t itself, 0..T-1; a respaced schedule has a subset of
    them, and each of its steps spans the gap to the timestep before it. Tables are float64, (N,).

    Attributes:
      timesteps: (N,) int32, ascending, each in 0..T-1: what a network sees.
      alpha: alpha_t = prod_{s<=t} (1 - beta_s).
    """

    timesteps: np.ndarray
    alpha: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def alpha_before(self) -> np.ndarray:
        """alpha_s of the timestep before; 1 (no noise) before the first."""
        return np.concatenate([[1.0], self.alpha[:-1]])

    @cached_property
    def beta(self) -> np.ndarray:
        """beta = 1 - alpha_t / alpha_s, the variance of q(z_t | z_s)."""
        return 1.0 - self.alpha / self.alpha_before

    @cached_property
    def beta_tilde(self) -> np.ndarray:
        """b_tilde = beta (1 - alpha_s) / (1 - alpha_t), the variance of q(z_s | z_t, x); its first is 0."""
        return self.beta * (1.0 - self.alpha_before) / (1.0 - self.alpha)

    @cached_property
    def log_beta_tilde(self) -> np.ndarray:
        """log b_tilde; the first entry, where b_tilde = 0, repeats the second (it multiplies no noise)."""
        positive = self.beta_tilde[1:] if len(self) > 1 else self.beta
        return np.log(np.concatenate([positive[:1], self.beta_tilde[1:]]))

    @cached_property
    def snr(self) -> np.ndarray:
        """The signal-to-noise ratio alpha_t / (1 - alpha_t)."""
        return self.alpha / (1.0 - self.alpha)

    @cached_property
    def half_log_snr(self) -> np.ndarray:
        """lambda = log(sqrt(alpha_t) / sqrt(1 - alpha_t)), the time of the exponential solvers."""
        return 0.5 * np.log(self.snr)

    @cached_property
    def _table(self) -> np.ndarray:
        """What `at` gathers, float64 (N, 11)."""
        noise_before = 1.0 - self.alpha_before
        with np.errstate(divide="ignore"):
            snr_before = self.alpha_before / noise_before
        columns = [
            np.sqrt(self.alpha),
            np.sqrt(1.0 - self.alpha),
            self.snr,
            np.sqrt(self.snr),
            self.beta / (1.0 - self.alpha),
            (1.0 - self.beta) ** -0.5,
            np.log(self.beta),
            self.log_beta_tilde,
            np.sqrt(self.alpha_before),
            np.sqrt(noise_before),
            snr_before,
        ]
        return np.stack(columns, axis=1)

    def at(self, i: tf.Tensor | int, dtype: tf.DType = tf.float32) -> NoiseLevel:
        """The level of the timestep of index i, int32 () or (B,); 0 is the least noise."""
        timesteps = tf.constant(np.concatenate([[-1], self.timesteps]), tf.int32)
        *here, signal_before, noise_before, snr_before = take(self._table, i, dtype)
        before = Level(tf.gather(timesteps, i), signal_before, noise_before, snr_before)
        return NoiseLevel(tf.gather(timesteps, i + 1), *here, before)

    def respaced(self, timesteps: Sequence[int]) -> NoiseSchedule:
        """The schedule that has the given t of this one.

        Raises:
          ValueError: empty, not strictly ascending, or a t that this schedule does not have.
        """
        chosen = np.asarray(timesteps, dtype=np.int32)
        if chosen.size == 0 or np.any(np.diff(chosen) <= 0) or not np.isin(chosen, self.timesteps).all():
            raise ValueError("timesteps must ascend strictly and be timesteps of the schedule")
        return NoiseSchedule(chosen, self.alpha[np.searchsorted(self.timesteps, chosen)])


def take(table: np.ndarray, i: tf.Tensor | int, dtype: tf.DType) -> list[tf.Tensor]:
    """Row i, int32 () or (B,), of a float64 table (N, K): K tensors, each () or (B, 1, 1, 1), of `dtype`."""
    rows = tf.gather(tf.constant(table, dtype), i)
    values = tf.unstack(rows, axis=-1)
    return [tf.reshape(value, [-1, 1, 1, 1]) for value in values] if rows.shape.rank == 2 else values


def linear(num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
    """beta_t linear in t from `beta_start` to `beta_end` (beta_T of Tables 3 and 4), both included."""
    return _of_beta(np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64))


def cosine(num_timesteps: int = 1000) -> NoiseSchedule:
    """alpha_t = f(t + 1) / f(0), f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2) (Nichol & Dhariwal, 2021)."""
    time = np.arange(num_timesteps + 1) / num_timesteps
    alpha = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return _of_beta(np.minimum(1.0 - alpha[1:] / alpha[:-1], LARGEST_BETA))


def shifted_cosine(num_timesteps: int = 1000, side: int = 64) -> NoiseSchedule:
    """log SNR = -2 ln tan(pi t / 2) + 2 ln(64 / side) (Hoogeboom et al., 2023, Eqs. 4 and 5).

    t is at the middle of each of the T steps, where both ends are finite; shifted as by `shifted`.
    """
    time = (np.arange(num_timesteps) + 0.5) / num_timesteps
    return shifted(_of_log_snr(-2.0 * np.log(np.tan(math.pi / 2 * time))), side)


def shifted(schedule: NoiseSchedule, side: int) -> NoiseSchedule:
    """Another log SNR by 2 ln(64 / side) at each of all T steps (Hoogeboom et al., 2023, Eq. 4).

    Averaged down to 64 pixels, an image of `side` pixels, the longer side, is then at each t as noisy as one
    of 64 under the given schedule.
    """
    return _of_log_snr(2.0 * schedule.half_log_snr + 2.0 * math.log(64 / side))


def _of_beta(beta: np.ndarray) -> NoiseSchedule:
    return NoiseSchedule(np.arange(len(beta), dtype=np.int32), np.cumprod(1.0 - beta))


def _of_log_snr(log_snr: np.ndarray) -> NoiseSchedule:
    return NoiseSchedule(np.arange(len(log_snr), dtype=np.int32), 1.0 / (1.0 + np.exp(-log_snr)))


# `diffusion.schedule` -> the schedule of a `DiffusionConfig` and of the images' longer side in pixels.
SCHEDULES = {
    "linear": lambda d, side: linear(d.num_timesteps, d.beta_start, d.beta_end),
    "cosine": lambda d, side: cosine(d.num_timesteps),
    "shifted_linear": lambda d, side: shifted(linear(d.num_timesteps, d.beta_start, d.beta_end), side),
    "shifted_cosine": lambda d, side: shifted_cosine(d.num_timesteps, side),
}


def strided_timesteps(num_timesteps: int, sections: Sequence[int]) -> np.ndarray:
    """Which t of 0..T-1 to keep: T in equal sections, each with its own count of evenly spaced steps.

    One section, such as (250,), spaces all steps evenly; (90, 60, 60, 20, 20) is the schedule of the paper's
    LSUN figures. The first section is the one with the least noise. A section's first and last t are kept;
    of a single step its first, but T-1 in the last section, because sampling starts from pure noise.

    Returns:
      (sum(sections),) int32, strictly ascending, if no section asks for more steps than it has.
    """
    parts = []
    for section, count in zip(np.array_split(np.arange(num_timesteps), len(sections)), sections):
        parts.append(section[0] + np.round(np.linspace(0, len(section) - 1, count)))
    parts[-1][-1] = num_timesteps - 1
    return np.concatenate(parts).astype(np.int32)


def logsnr_timesteps(schedule: NoiseSchedule, count: int, trailing: bool = False) -> np.ndarray:
    """`count` timesteps of the schedule, as evenly spaced in log-SNR as distinct timesteps can be.

    Both ends are kept (T-1 alone if count is 1, or if `trailing`). Where the schedule is coarser than the
    spacing, which is at the least noise, all its timesteps are kept and those that are left over move up.

    Args:
      trailing: cut the axis of log-SNR into `count` parts, and keep the noisier end of each.
    Returns:
      (count,) int32, strictly ascending, if there are no more than the schedule has.
    """
    steps = len(schedule)
    if count == 1:
        return schedule.timesteps[-1:]
    log_snr = np.log(schedule.snr)
    wanted = np.linspace(log_snr[0], log_snr[-1], count + trailing)[trailing:]
    indices = np.round(np.interp(-wanted, -log_snr, np.arange(steps))).astype(np.int64)
    # Strictly ascending, and with room left for those that follow: index k is at least k, and at most
    # steps - count + k.
    ranks = np.arange(count)
    indices = np.maximum.accumulate(indices - ranks) + ranks
    indices = np.minimum(indices, steps - count + ranks)
    return schedule.timesteps[indices]


def trailing_timesteps(schedule: NoiseSchedule, count: int) -> np.ndarray:
    """The noisier end of each of `count` equal parts of the timesteps, int32 (count,) (Lin et al., 2024)."""
    ends = np.arange(1, count + 1) * len(schedule) // count
    return schedule.timesteps[ends - 1]


# `sampling.spacing` -> the timesteps of a schedule for a number of steps; "even" takes sections, too.
# Trailing ones for half the number are every second one.
SPACINGS = {
    "even": lambda schedule, *steps: schedule.timesteps[strided_timesteps(len(schedule), steps)],
    "logsnr": logsnr_timesteps,
    "trailing": trailing_timesteps,
    "logsnr_trailing": partial(logsnr_timesteps, trailing=True),
}
