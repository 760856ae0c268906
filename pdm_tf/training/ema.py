"""Moving averages of the weights, float32 on the host: exponential (Appendix C) and power-function ones."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from pdm_tf.averages import decay as decay_of
from pdm_tf.weights import arrays_for, read_arrays, variable_names, write_arrays


@dataclasses.dataclass(eq=False)
class ExponentialMovingAverage:
    """average <- d * average + (1 - d) * weights, starting from the first weights.

    With `warmup`, update n uses d = min(decay, (1 + n) / (10 + n)), so that a short run forgets its first
    weights. The averages are NumPy arrays in the host's memory: no accelerator holds a copy, and none waits
    for more than the weights being read, because a thread does the sums while training goes on.

    Beside it, of the same weights at the same moments, power-function averages of some `lengths`
    (`pdm_tf.averages`) may be kept for later; nothing in training uses them.
    """

    variables: Sequence[tf.Variable]
    decay: float
    warmup: bool = False
    lengths: Sequence[float] = ()

    def __post_init__(self):
        self._kept = {None: self._weights()}
        # The first update gives them their first weights: its decay is 0.
        self._kept.update({length: [np.zeros_like(a) for a in self._kept[None]] for length in self.lengths})
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "ema")
        self._update = self._thread.submit(lambda: None)

    @property
    def averages(self) -> list[np.ndarray]:
        """The averages, float32, in the order of the variables, after all updates so far."""
        self._update.result()
        return self._kept[None]

    def update(self, number: int) -> None:
        """Takes the current weights into the averages; `number` counts the updates from 0."""
        self._update.result()
        decays = {length: decay_of(length, number) for length in self.lengths}
        decays[None] = self._decay(number)
        moves = [(averages, decays[length]) for length, averages in self._kept.items()]
        self._update = self._thread.submit(_move, moves, self._weights())

    def _decay(self, number: int) -> float:
        return min(self.decay, (1 + number) / (10 + number)) if self.warmup else self.decay

    def share_of_first(self, updates: int) -> float:
        """The share of the first weights in the average after some updates: the product of their decays."""
        return math.prod(map(self._decay, range(updates)))

    def restart(self) -> None:
        """Sets the averages to the current weights."""
        self._update.result()
        self._kept[None] = self._weights()

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the variables hold the averages; after it, their own values again, bit for bit."""
        averages = self.averages
        weights = [variable.numpy() for variable in self.variables]
        try:
            _assign(self.variables, averages)
            yield
        finally:
            _assign(self.variables, weights)

    def save(self, path: str | os.PathLike, length: float | None = None) -> None:
        """Writes the averages, or the power-function ones of a length, as .npz, by variable name."""
        self._update.result()
        write_arrays(path, dict(zip(variable_names(self.variables), self._kept[length])))

    def load(self, path: str | os.PathLike, length: float | None = None) -> None:
        """Reads `save`'s file back; UserError if it is missing, damaged or of another network."""
        self._update.result()
        arrays = arrays_for(self.variables, read_arrays(path), path)
        self._kept[length] = [array.astype(np.float32) for array in arrays]

    def _weights(self) -> list[np.ndarray]:
        """Copies of the weights, float32; `numpy` makes them."""
        return [variable.numpy().astype(np.float32, copy=False) for variable in self.variables]


def _move(moves: Sequence[tuple[list[np.ndarray], float]], weights: Sequence[np.ndarray]) -> None:
    """Takes weights into averages, each with its own decay."""
    for averages, decay in moves:
        share = np.float32(1.0 - decay)
        for average, weight in zip(averages, weights):
            change = weight - average
            change *= share
            average += change


def _assign(variables: Sequence[tf.Variable], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values):
        variable.assign(value)
