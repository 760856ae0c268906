"""Table 1: distance to the data and speed of sampling against the patch size."""

from __future__ import annotations

import time

import numpy as np

from pdm_tf.analysis.grids import samples_of
from pdm_tf.analysis.study import Result, Study
from pdm_tf.analysis.tables import as_texts, evaluation_of, mean_metrics
from pdm_tf.models import Model


def measure(study: Study) -> Result:
    """Metrics as evaluated, parameters, and images a second, measured here, of each model.

    Several seeds of a model are one row, whose first is timed.
    """
    rows = {}
    groups = sorted(study.groups.items(), key=lambda group: group[1][0].config.network.patch_size)
    for title, models in groups:
        first = models[0]
        evaluations = [evaluation_of(study, model) for model in models]
        rows[title] = {
            "patch_size": first.config.network.patch_size,
            "parameters": int(sum(np.prod(variable.shape) for variable in first.denoiser.variables)),
            "seeds": len(models),
            "steps": first.config.sampling.steps,
            "images_per_second": _images_per_second(study, title, first),
            "metrics": {} if None in evaluations else mean_metrics(evaluations),
        }
    numbers = {"rows": rows, "batch_size": study.batch_size}
    return Result(numbers, _sentence(rows, study.batch_size), table=as_texts(rows))


def _images_per_second(study: Study, title: str, model: Model) -> float:
    samples = samples_of(study, title, model)
    list(samples)  # traces the graph
    begin = time.monotonic()
    list(samples)
    return len(samples.starts) * samples.batch_size / (time.monotonic() - begin)


def _sentence(rows: dict, batch_size: int) -> str:
    first, *others = rows
    speed = rows[first]["images_per_second"]
    ratios = [f"{title} {rows[title]['images_per_second'] / speed:.2f} times" for title in others]
    compared = (
        f", {', '.join(ratios)} as many" if ratios else "; runs of several patch sizes would be compared"
    )
    missing = [title for title, row in rows.items() if not row["metrics"]]
    advice = f"; the distance of {', '.join(missing)} is not known: evaluate the run first" if missing else ""
    return f"{first} draws {speed:.2f} images a second at {batch_size} at a time{compared}{advice}."
