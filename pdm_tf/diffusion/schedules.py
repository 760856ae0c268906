"""Noise schedules: float64 tables of the variance-preserving process (Eqs. 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The kept steps of a diffusion process, from the least to the most noise.

    Index i counts the kept steps, `timesteps[i]` is the t that a network is told. In the full process all
    T steps are kept and i = t; a strided schedule keeps a subset, and each of its steps spans the gap to
    the kept step before it. All tables are float64 of shape (N,).

    Attributes:
      timesteps: (N,) int32, ascending, each in 0..T-1.
      alpha: alpha_t = prod_{s<=t} (1 - beta_s) at the kept steps.
    """

    timesteps: np.ndarray
    alpha: np.ndarray

    def __post_init__(self):
        for table in (self.timesteps, self.alpha):
            table.setflags(write=False)

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def alpha_before(self) -> np.ndarray:
        """alpha_s of the kept step before; 1 (no noise) before the first."""
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
    def log_beta(self) -> np.ndarray:
        """log beta."""
        return np.log(self.beta)

    @cached_property
    def log_beta_tilde(self) -> np.ndarray:
        """log b_tilde; the first entry, where b_tilde = 0, repeats the second (it multiplies no noise)."""
        positive = self.beta_tilde[1:] if len(self) > 1 else self.beta
        return np.log(np.concatenate([positive[:1], self.beta_tilde[1:]]))

    @cached_property
    def signal_rate(self) -> np.ndarray:
        """sqrt(alpha_t), what x is multiplied by in z_t."""
        return np.sqrt(self.alpha)

    @cached_property
    def noise_rate(self) -> np.ndarray:
        """sqrt(1 - alpha_t), what eps is multiplied by in z_t."""
        return np.sqrt(1.0 - self.alpha)

    @cached_property
    def snr(self) -> np.ndarray:
        """The signal-to-noise ratio alpha_t / (1 - alpha_t)."""
        return self.alpha / (1.0 - self.alpha)

    def keep(self, timesteps: Sequence[int]) -> NoiseSchedule:
        """The strided schedule that keeps the given t of this one.

        Raises:
          ValueError: empty, not strictly ascending, or a t that this schedule does not have.
        """
        kept = np.asarray(timesteps, dtype=np.int32)
        if kept.size == 0 or np.any(np.diff(kept) <= 0) or not np.isin(kept, self.timesteps).all():
            raise ValueError("kept timesteps must ascend strictly and be timesteps of the schedule")
        return NoiseSchedule(kept, self.alpha[np.searchsorted(self.timesteps, kept)])


def linear_schedule(
    num_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """beta_t linear in t from `beta_start` to `beta_end` (beta_T of Tables 3 and 4), both included."""
    beta = np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)
    return NoiseSchedule(np.arange(num_timesteps, dtype=np.int32), np.cumprod(1.0 - beta))


def strided_timesteps(num_timesteps: int, sections: Sequence[int]) -> np.ndarray:
    """Which t of 0..T-1 to keep: T in equal sections, each with its own count of evenly spaced steps.

    One section, such as (250,), spaces all steps evenly; (90, 60, 60, 20, 20) is the schedule of the paper's
    LSUN figures. The first section is the one with the least noise. A section's first and last t are kept;
    of a single step its first, but T-1 in the last section, because sampling starts from pure noise.

    Returns:
      (sum(sections),) int32, strictly ascending.
    Raises:
      ValueError: a section asks for fewer than 1 step or for more than it has.
    """
    starts = np.array([len(part) for part in np.array_split(np.arange(num_timesteps), len(sections))])
    kept, start = [], 0
    for size, count in zip(starts, sections):
        if not 1 <= count <= size:
            raise ValueError(f"cannot keep {count} of a section of {size} timesteps")
        kept.append(start + np.round(np.linspace(0, size - 1, count)).astype(np.int32))
        start += size
    kept[-1][-1] = num_timesteps - 1
    return np.concatenate(kept).astype(np.int32)


def logsnr_timesteps(schedule: NoiseSchedule, count: int) -> np.ndarray:
    """`count` timesteps of the schedule, as evenly spaced in log-SNR as distinct timesteps can be.

    Both ends are kept (T-1 alone if count is 1). Where the schedule is coarser than the spacing, which is at
    the least noise, all its timesteps are kept and those that are left over move up.

    Returns:
      (count,) int32, strictly ascending.
    Raises:
      ValueError: fewer than 1 step or more than the schedule has.
    """
    steps = len(schedule)
    if not 1 <= count <= steps:
        raise ValueError(f"cannot keep {count} of {steps} timesteps")
    if count == 1:
        return schedule.timesteps[-1:]
    log_snr = np.log(schedule.snr)
    wanted = np.linspace(log_snr[0], log_snr[-1], count)
    indices = np.round(np.interp(-wanted, -log_snr, np.arange(steps))).astype(np.int64)
    # Strictly ascending, and with room left for those that follow: index k is at least k, and at most
    # steps - count + k.
    ranks = np.arange(count)
    indices = np.maximum.accumulate(indices - ranks) + ranks
    indices = np.minimum(indices, steps - count + ranks)
    return schedule.timesteps[indices]


def at(table: np.ndarray, index: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """A float64 table's values at `index`, shaped to multiply images.

    Args:
      table: (N,) float64.
      index: int32, () or (B,).
    Returns:
      `dtype`, () or (B, 1, 1, 1).
    """
    values = tf.gather(tf.constant(table, dtype), index)
    return tf.reshape(values, [-1, 1, 1, 1]) if index.shape.rank == 1 else values
