"""Exponential moving average of the weights: one float32 copy on the host (Appendix C)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from pdm_tf.weights import assign_arrays, read_arrays, variable_names, write_arrays


class ExponentialMovingAverage:
    """average <- d * average + (1 - d) * weights, starting from the first weights.

    With `warmup`, update n uses d = min(decay, (1 + n) / (10 + n)), so that a short run forgets its first
    weights. The averages are NumPy arrays in the host's memory: no accelerator holds a copy.
    """

    def __init__(self, variables: Sequence[tf.Variable], decay: float, warmup: bool = False):
        self.variables = list(variables)
        self.decay = decay
        self.warmup = warmup
        self.averages = [variable.numpy().astype(np.float32) for variable in self.variables]

    def update(self, number: int) -> None:
        """Takes the weights into the average; `number` counts the updates from 0."""
        decay = min(self.decay, (1 + number) / (10 + number)) if self.warmup else self.decay
        for average, variable in zip(self.averages, self.variables):
            average += np.float32(1.0 - decay) * (variable.numpy() - average)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the variables hold the averages; after it, their own values again, bit for bit."""
        own = [variable.numpy() for variable in self.variables]
        try:
            _assign(self.variables, self.averages)
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
        own = [variable.numpy() for variable in self.variables]
        assign_arrays(self.variables, read_arrays(path), path)
        self.averages = [variable.numpy().astype(np.float32) for variable in self.variables]
        if not into_variables:
            _assign(self.variables, own)


def _assign(variables: Sequence[tf.Variable], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values):
        variable.assign(value)
