"""What Tables 1 and 2 share: metrics of models as they were evaluated, and rows as texts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdm_tf.analysis.study import Study
from pdm_tf.config.fields import SamplingConfig
from pdm_tf.errors import UserError
from pdm_tf.evaluation.metrics import Measurement
from pdm_tf.models import Model

Metrics = dict[str, dict[str, float | None]]  # name -> {"value": ..., "error": ...}


def evaluation_of(study: Study, model: Model) -> dict[str, Any] | None:
    """The row of an evaluation.json that is of the model's weights, sampled as its config says, or None.

    It may lie in the folder of any run of the model, or in a folder of the study's. UserError if a file is no
    evaluation.
    """
    wanted = _that_counts(dataclasses.asdict(model.config.sampling))
    folders = [run.folder.evaluation for run in model.runs]
    for folder in dict.fromkeys([*folders, *study.evaluations]):
        for row in _rows(folder / "evaluation.json"):
            if row.get("digest") == model.digest and _that_counts(row.get("sampling", wanted)) == wanted:
                return row
    return None


def _that_counts(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of sampling as JSON values, with defaults for those that an older version did not have, and
    without XLA, which changes no image."""
    settings = {**dataclasses.asdict(SamplingConfig()), **sampling, "jit_compile": False}
    return json.loads(json.dumps(settings))


def _rows(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        return json.loads(file.read_bytes())["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no evaluation ({type(error).__name__}): evaluate the run again"
        ) from error


def mean_metrics(evaluations: Sequence[Mapping[str, Any]]) -> Metrics:
    """Metrics of one evaluation as they are; of several seeds the mean, with the standard deviation over
    seeds as its error."""
    metrics = [evaluation["metrics"] for evaluation in evaluations]
    if len(metrics) == 1:
        return metrics[0]
    means = {}
    for name in metrics[0]:
        values = [seed[name]["value"] for seed in metrics if name in seed]
        if len(values) == len(metrics):
            means[name] = {"value": float(np.mean(values)), "error": float(np.std(values, ddof=1))}
    return means


def as_texts(rows: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Titles of the columns, and lines of texts: a row's numbers, then its metrics with their errors."""
    names = dict.fromkeys(name for row in rows.values() for name in row if name != "metrics")
    metrics = dict.fromkeys(name for row in rows.values() for name in row.get("metrics", {}))
    lines = [
        [
            title,
            *(_text(row.get(name)) for name in names),
            *(with_error(row.get("metrics", {}).get(name)) for name in metrics),
        ]
        for title, row in rows.items()
    ]
    return ["", *(name.replace("_", " ") for name in names), *metrics], lines


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def with_error(metric: Mapping[str, float | None] | None) -> str:
    """A value with its error as text."""
    return "-" if metric is None else str(Measurement(metric["value"], metric.get("error")))
