"""Exponential moving average of the weights: one float32 copy on the host (Appendix C)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from pdm_tf.weights import assign_arrays, read_arrays, variable_names, write_arrays


class ExponentialMovingAverage:
    """average <- d * average + (1 - d) * weights, starting from the first weights.

    With `warmup`, update n uses d = min(decay, (1 + n) / (10 + n)), so that a short run forgets its first
    weights. The averages are NumPy arrays in the host's memory: no accelerator holds a copy, and none waits
    for more than the weights being read, because a thread does the sums while training goes on.
    """

    def __init__(self, variables: Sequence[tf.Variable], decay: float, warmup: bool = False):
        self.variables = list(variables)
        self.decay = decay
        self.warmup = warmup
        self._averages = self._weights()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "ema")
        self._update = self._thread.submit(lambda: None)

    @property
    def averages(self) -> list[np.ndarray]:
        """The averages, float32, in the order of the variables, after all updates so far."""
        self._update.result()
        return self._averages

    def update(self, number: int) -> None:
        """Takes the weights of now into the average; `number` counts the updates from 0."""
        decay = min(self.decay, (1 + number) / (10 + number)) if self.warmup else self.decay
        averages, weights = self.averages, self._weights()
        self._update = self._thread.submit(_move, averages, weights, np.float32(1.0 - decay))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the variables hold the averages; after it, their own values again, bit for bit."""
        averages, own = self.averages, [variable.numpy() for variable in self.variables]
        try:
            _assign(self.variables, averages)
            yield
        finally:
            _assign(self.variables, own)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the averages as .npz, by variable name."""
        write_arrays(path, dict(zip(variable_names(self.variables), self.averages)))

    def load(self, path: str | os.PathLike, into_variables: bool = False) -> None:
        """Reads `save`'s file into the averages, and into the variables too if asked.

        Raises:
          UserError: it is missing, damaged or of another network.
        """
        self._update.result()
        own = [variable.numpy() for variable in self.variables]
        assign_arrays(self.variables, read_arrays(path), path)
        self._averages = self._weights()
        if not into_variables:
            _assign(self.variables, own)

    def _weights(self) -> list[np.ndarray]:
        """Copies of the weights, float32; `numpy` makes them."""
        return [variable.numpy().astype(np.float32, copy=False) for variable in self.variables]


def _move(averages: Sequence[np.ndarray], weights: Sequence[np.ndarray], share: np.float32) -> None:
    for average, weight in zip(averages, weights):
        weight -= average
        weight *= share
        average += weight


def _assign(variables: Sequence[tf.Variable], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values):
        variable.assign(value)
