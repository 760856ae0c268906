"""Section 4.3: the largest batch that trains within a limit of memory, with patches over without."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import tensorflow as tf

from pdm_tf import plots
from pdm_tf.analysis.study import Result, Study
from pdm_tf.config.fields import Config, validate
from pdm_tf.progress import bar, in_fresh_process, peak_resident
from pdm_tf.training.model import step_on_zeros

TOLERANCE = 16  # the largest batch is found to 1 part in this


def measure(study: Study) -> Result:
    """The largest batch of each model; of a single one that of its network with its own P, and with P = 1
    (a P of 1: with P = 4).

    Each peak is that of one train step, float32, in a fresh process: the allocator's on a GPU, else the
    process's resident memory.
    """
    limit = study.memory_gib * 1024
    rows = {}
    for title, config in _configs(study).items():
        config = validate(config.replace({"training.grad_accum": 1}))
        with bar(desc=f"memory, {title}", unit="process") as shown:

            def peak(batch: int, config=config, shown=shown) -> float:
                found = peak_in_child(config.replace({"training.batch_size": batch}))
                shown.update()
                return found

            # Two patch sizes share a batch.
            largest, peaks = largest_batch(peak, limit, least=2 if config.network.patch_switch_t else 1)
        known = {batch: value for batch, value in sorted(peaks.items()) if math.isfinite(value)}
        slope = None
        if len(known) > 1:
            slope = float(np.polyfit(list(known), list(known.values()), 1)[0])
        rows[title] = {
            "patch_size": config.network.patch_size,
            "largest_batch": largest,
            "peak_mebibytes": {str(batch): value for batch, value in known.items()},
            "mebibytes_per_image": slope,
        }
    numbers = {"limit_mebibytes": limit, "rows": rows}
    return Result(numbers, _sentence(rows, study.memory_gib), panels=[_panel(numbers)])


def _configs(study: Study) -> dict[str, Config]:
    """Title -> config, of everything that is measured."""
    configs = {title: models[0].config for title, models in study.groups.items()}
    if len(configs) > 1:
        return configs
    ((title, config),) = configs.items()
    other = 4 if config.network.patch_size == 1 else 1
    return {title: config, f"the same with P={other}": config.replace({"network.patch_size": other})}


def _sentence(rows: dict, gib: float) -> str:
    smallest = min(rows, key=lambda title: rows[title]["patch_size"])
    base = rows[smallest]["largest_batch"]
    values = []
    for title, row in rows.items():
        ratio = f", {row['largest_batch'] / base:.1f} times as many" if base and title != smallest else ""
        slope = row["mebibytes_per_image"]
        size = "not even the smallest fits" if slope is None else f"{slope:.1f} MiB each"
        values.append(f"{row['largest_batch']} of {title}{ratio} ({size})")
    return f"Within {gib:g} GiB the largest batch that trains is {' and '.join(values)}; the paper: 4 times."


def largest_batch(peak: Callable[[int], float], limit: float, least: int = 1) -> tuple[int, dict[int, float]]:
    """The largest batch whose peak is within the limit, to 1 part in `TOLERANCE`: by growth, then bisection.

    `peak` maps a batch, of `least` or more, to memory, inf where the process ran out of it. The result is 0
    where not even the least fits; with it come all peaks that were measured.
    """
    peaks: dict[int, float] = {}
    fits = 0
    fails = math.inf
    while fails > least and fails - fits > max(1, fits // TOLERANCE):
        batch = max(least, 4 * fits) if math.isinf(fails) else int(fits + fails) // 2
        peaks[batch] = peak(batch)
        if peaks[batch] <= limit:
            fits = batch
        else:
            fails = batch
    return fits, peaks


def peak_in_child(config: Config) -> float:
    """The peak of one train step in a fresh process, MiB; inf if it ran out of memory."""
    try:
        return in_fresh_process(peak_of_step, config)
    except (BrokenProcessPool, MemoryError, tf.errors.ResourceExhaustedError):
        return math.inf


def peak_of_step(config: Config) -> float:
    """The peak of this process after one train step of the config's batch, MiB."""
    _, step = step_on_zeros(config)
    step()
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    return peak_resident()


def _panel(numbers: dict) -> plots.Panel:
    """Peaks against the batch, with the limit."""
    lines = {}
    for title, row in numbers["rows"].items():
        batches = np.array([int(batch) for batch in row["peak_mebibytes"]])
        lines[title] = (batches, np.array(list(row["peak_mebibytes"].values())), None)
    ends = np.array([1, max(batches.max(initial=1) for batches, *_ in lines.values())])
    lines["limit"] = (ends, np.full(2, numbers["limit_mebibytes"]), None)
    return plots.Panel("peak memory of a train step, MiB", "images a batch", lines)
