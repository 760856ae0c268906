"""Post-hoc EMA: averages of the weights of any length, after training (EDM2: Karras et al. 2024, Appendix C).

A *power-function EMA* at step t weighs the weights of step tau by ~ tau^gamma, 0 <= tau <= t: this profile
peaks at t, has nothing of the first weights, and keeps its shape as training goes on. Its **length** is
sigma_rel, the standard deviation of the profile relative to the run so far: 0.1 at step 50,000 is 5,000
steps. A traditional EMA with decay d, updated each `e` steps, has the deviation e / (1 - d) steps whatever t,
so its length e / ((1 - d) t) falls.

Training keeps power-function EMAs of a few lengths and writes *snapshots* of them. A linear combination of
these approximates the EMA of any other length at any step that has a snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pdm_tf.config.fields import EMA_LENGTHS
from pdm_tf.config.words import require, word
from pdm_tf.errors import UserError
from pdm_tf.progress import bar
from pdm_tf.run import RunFolder
from pdm_tf.weights import check_finite, read_arrays

MAX_MISPLACED = 0.25  # an average with a larger part from the wrong steps is refused
NEGLIGIBLE = 1e-9  # a snapshot of a smaller coefficient is below float32's rounding, and is not read


class Average(NamedTuple):
    """An average of a run's weights, as a linear combination of snapshots."""

    files: list[tuple[float, Path]]  # the snapshots, each with its coefficient
    step: int  # where it ends
    misplaced: float  # the part, 0 to 1, from the wrong steps; 0 for a length that training kept

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights, float32 by variable name: summed in float64, with one file in memory at a time."""
        total: dict[str, np.ndarray] = {}
        for coefficient, path in bar(self.files, desc="average", unit="snapshot"):
            arrays = read_arrays(path)
            check_finite(arrays, path)
            total = total or {name: np.zeros(array.shape) for name, array in arrays.items()}
            shapes = {name: array.shape for name, array in arrays.items()}
            if {name: array.shape for name, array in total.items()} != shapes:
                first = self.files[0][1]
                raise UserError(f"{path} holds the weights of another network than {first}: restore it")
            for name, array in arrays.items():
                total[name] += coefficient * array.astype(np.float64)
        return {name: array.astype(np.float32) for name, array in total.items()}


def gamma_of(length: float) -> float:
    """The exponent gamma of sigma_rel: the largest root of sigma_rel^2 = (g+1) / ((g+2)^2 (g+3)) (Eq. 123).

    `length` is sigma_rel, above 0 and below 1 / sqrt(12), the plain mean's.
    """
    inverse = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def decay(length: float, number: int) -> float:
    """beta = (1 - 1/t)^(gamma + 1) of update `number`, counted from 0, so that t = number + 1 (Eq. 3).

    With t counted in updates, each update stands for the steps since the one before it, exactly.
    """
    return float((number / (number + 1)) ** (gamma_of(length) + 1))


def profile(length: float, updates: int, count: int) -> np.ndarray:
    """The profile over `count` updates of an EMA of the first `updates` of them, float64 (count,).

    The integral of (gamma + 1) tau^gamma / t^(gamma + 1) (Eq. 2) over each update.
    """
    edges = np.minimum(np.arange(count + 1) / updates, 1.0)
    return np.diff(edges ** (gamma_of(length) + 1))


def posthoc_coefficients(profiles: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Coefficients of the snapshots, float64 (snapshots,): least squares of their profiles (Appendix C.3).

    Over sums in place of integrals, so that it also holds for few updates. The coefficients sum to 1, so that
    constant weights stay what they are.

    Args:
      profiles: those of the snapshots, float64 (snapshots, updates).
      wanted: the profile to approximate, float64 (updates,).
    """
    base = profiles[-1]
    others = np.linalg.lstsq((profiles[:-1] - base).T, wanted - base, rcond=None)[0]
    return np.append(others, 1.0 - others.sum())


def reconstruct(run: RunFolder, length: float) -> Average:
    """The average of a length, 0.01 to 0.25, of all that a run has kept (`training.ema_lengths`).

    Far from the lengths that were kept it needs many snapshots. No weights are read. UserError if there is no
    such length, or there are no snapshots, or too few for the length.
    """
    least, most = EMA_LENGTHS
    require(least <= length <= most, f"an average of length {length:g}: use a length of {least} to {most}")
    training = run.config().training
    snapshots = [(one, step) for one in training.ema_lengths for step in run.snapshot_steps(one)]
    end = _last_step(run, training.ema_lengths, snapshots)
    snapshots = [(one, step) for one, step in snapshots if step <= end]
    count = end // training.ema_every
    profiles = np.array([profile(one, step // training.ema_every, count) for one, step in snapshots])
    wanted = profile(length, count, count)
    coefficients = posthoc_coefficients(profiles, wanted)
    misplaced = float(np.abs(coefficients @ profiles - wanted).sum() / 2)
    require(
        misplaced <= MAX_MISPLACED,
        f"{run}: {misplaced:.0%} of an average of length {length:g} at step {end:,} would come from the "
        f"wrong steps, with {len(snapshots)} snapshots to make it from: use a length nearer to those kept "
        f"({word(training.ema_lengths)}), or a run with a higher training.ema_snapshots",
    )
    files = [
        (coefficient, run.snapshot(one, step))
        for coefficient, (one, step) in zip(coefficients, snapshots)
        if abs(coefficient) > NEGLIGIBLE
    ]
    return Average(files, end, misplaced)


def _last_step(run: RunFolder, lengths: Sequence[float], snapshots: Sequence[tuple[float, int]]) -> int:
    """The newest step that has a snapshot of each length."""
    if not lengths:
        raise UserError(f"{run} kept no snapshots (training.ema_lengths): take its own average")
    steps = {step for _, step in snapshots}
    whole = [step for step in steps if all((one, step) in snapshots for one in lengths)]
    if not whole:
        raise UserError(f"{run} has no snapshots of length {word(lengths)} yet: take its own average")
    return max(whole)
