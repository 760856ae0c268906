"""Table 2: metrics of models and what their training cost."""

from __future__ import annotations

import numpy as np

from pdm_tf.analysis.study import Result, Study
from pdm_tf.analysis.tables import as_texts, evaluation_of, mean_metrics
from pdm_tf.errors import UserError
from pdm_tf.models import Model
from pdm_tf.run import training_seconds

SECONDS_A_DAY = 86400


def measure(study: Study) -> Result:
    """IS, FID, sFID, precision and recall as evaluated, and the days that training took.

    Several seeds of a model are one row. UserError if none of the models has been evaluated.
    """
    rows = {}
    missing = []
    for title, models in study.groups.items():
        evaluations = [evaluation_of(study, model) for model in models]
        missing += [model.title for model, row in zip(models, evaluations) if row is None]
        if None not in evaluations:
            days = [device_days(model) for model in models]
            rows[title] = {
                "device_days": None if None in days else float(np.mean(days)),
                "images": evaluations[0]["images"],
                "seeds": len(models),
                "metrics": mean_metrics(evaluations),
            }
    if not rows:
        folder = study.models[0].runs[0].folder.evaluation
        raise UserError(
            f"{' and '.join(missing)} has not been evaluated with the weights and sampling that it has (in "
            f"{folder}): evaluate it first"
        )
    return Result({"rows": rows}, _sentence(rows, missing), table=as_texts(rows))


def _sentence(rows: dict, missing: list[str]) -> str:
    results = []
    for title, row in rows.items():
        values = [
            f"{name} {metric['value']:.4g}"
            for name, metric in row["metrics"].items()
            if name not in ("density", "coverage")
        ]
        cost = "unknown time" if row["device_days"] is None else f"{row['device_days']:.3g} days"
        results.append(f"{title} reaches {', '.join(values)} after {cost} of training")
    note = f" ({', '.join(missing)} has not been evaluated)" if missing else ""
    return f"{'; '.join(results)}{note}."


def device_days(model: Model) -> float | None:
    """Days of this machine that training took by its logged speeds, or None without logs."""
    days = 0.0
    for run in model.runs:
        metrics = run.folder.metrics()
        if "images_per_second" not in metrics:
            return None
        days += training_seconds(metrics, run.config.training.batch_size) / SECONDS_A_DAY
    return days
