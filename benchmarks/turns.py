"""Measurements in turns, so that other load on the machine falls on all that is compared."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pdm_tf import stack


def in_turns(
    measures: Mapping[Any, Callable[[], float]], turns: int, warm_up: int = 0
) -> dict[Any, np.ndarray]:
    """What each function returns in each turn, (turns,), after `warm_up` turns that do not count."""
    rows = [[measure() for measure in measures.values()] for _ in range(warm_up + turns)]
    return dict(zip(measures, np.array(rows[warm_up:]).T))


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
    found = stack.versions()
    cores = len(os.sched_getaffinity(0))
    return f"TensorFlow {found['tensorflow']}, oneDNN {found['onednn']}, {cores} cores"
