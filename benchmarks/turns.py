"""Measurements in turns, so that other load on the machine falls on all that is compared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pdm_tf import stack


def in_turns(measures: Mapping[Any, Callable[[], float]], turns: int) -> dict[Any, np.ndarray]:
    """The number that each function returns, called once in each turn: (turns,)."""
    rows = [[measure() for measure in measures.values()] for _ in range(turns)]
    return dict(zip(measures, np.array(rows).T))


def seconds(call: Callable[[], Any], repeats: int = 1) -> float:
    """The mean wall time of a call."""
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def with_range(values: Sequence[float]) -> str:
    """Median and range as text."""
    return f"{np.median(values):.2f} ({np.min(values):.2f} to {np.max(values):.2f})"


def machine() -> str:
    """The versions and cores that a table is of."""
    onednn = "on" if stack.onednn_is_on() else "off"
    return f"TensorFlow {tf.__version__}, oneDNN {onednn}, {len(os.sched_getaffinity(0))} cores"
