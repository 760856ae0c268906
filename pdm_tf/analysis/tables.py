"""Table 1, distance and speed against P, and Table 2, the measures of a run and what it cost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdm_tf import plots
from pdm_tf.analysis.grids import batches_of
from pdm_tf.analysis.subject import Findings, Subject
from pdm_tf.errors import UserError
from pdm_tf.models import Model
from pdm_tf.run import training_seconds

ERROR = " error"
SECONDS_A_DAY = 86400


def evaluated(model: Model, folders: Sequence[Path] = ()) -> dict[str, Any] | None:
    """The row of an evaluation.json that has the model's digest, or None if there is none.

    Args:
      folders: where to look beside the evaluation/ of each run folder.
    Raises:
      UserError: a file is no evaluation.
    """
    for folder in (*(run.folder.evaluation for run in model.runs), *folders):
        file = folder / "evaluation.json"
        if not file.exists():
            continue
        try:
            found = json.loads(file.read_bytes())
            for row in found["results"]:
                if row.get("digest") == model.digest:
                    return {**row, "detector": found["detector"]["name"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is no evaluation ({type(error).__name__}): evaluate the run again"
            ) from error
    return None


def distances(row: dict[str, Any] | None) -> dict[str, float]:
    """The numbers of an evaluation, each with its error."""
    found = {}
    for name, measurement in (row or {}).get("metrics", {}).items():
        found[name] = measurement["value"]
        if measurement["error"] is not None:
            found[name + ERROR] = measurement["error"]
    return found


def parameters(model: Model) -> int:
    """Trainable parameters of all its networks."""
    return int(sum(np.prod(variable.shape) for variable in model.denoiser.variables))


def over_seeds(rows: Sequence[dict[str, Any] | None]) -> dict[str, float]:
    """The numbers of a model's evaluations: of one seed with their own errors, of several the mean and the
    deviation over seeds; of seeds that are not evaluated {}.
    """
    own = [distances(row) for row in rows]
    if len(own) == 1:
        return own[0]
    found = {}
    for name in own[0]:
        values = [row.get(name) for row in own]
        if not name.endswith(ERROR) and None not in values:
            found |= {name: float(np.mean(values)), name + ERROR: float(np.std(values, ddof=1))}
    return found


def patch_sizes(subject: Subject) -> Findings:
    """Distance, as evaluated, parameters, and images a second, drawn here, of each model (Table 1).

    Several seeds of a model are one row; its first is what is timed.
    """
    rows = {}
    for name, models in sorted(subject.groups.items(), key=lambda item: item[1][0].config.network.patch_size):
        model = models[0]
        batches = batches_of(model, subject, name)
        list(batches)  # traces the graph, which is not timed
        begun = time.monotonic()
        list(batches)
        seconds = time.monotonic() - begun
        rows[name] = {
            "patch_size": model.config.network.patch_size,
            "parameters": parameters(model),
            "seeds": len(models),
            "steps": model.config.sampling.steps,
            "images_per_second": len(batches.starts) * batches.batch_size / seconds,
            **over_seeds([evaluated(one, subject.evaluations) for one in models]),
        }
    first, *others = rows
    speed = rows[first]["images_per_second"]
    said = [f"{other} {rows[other]['images_per_second'] / speed:.2f} times" for other in others]
    compared = f", {', '.join(said)} as many" if said else "; runs of several patch sizes would be compared"
    missing = [name for name, row in rows.items() if not row.keys() - set(_OWN)]
    needed = f"; the distance of {', '.join(missing)} is not known: evaluate the run first" if missing else ""
    sentence = (
        f"{first} draws {speed:.2f} images a second at {subject.batch_size} at a time{compared}{needed}."
    )
    return Findings({"rows": rows, "batch_size": subject.batch_size}, sentence)


_OWN = ("patch_size", "parameters", "seeds", "steps", "images_per_second")


def measures(subject: Subject) -> Findings:
    """IS, FID, sFID, precision and recall as evaluated, and the time that training took (Table 2).

    Several seeds of a model are one row.

    Raises:
      UserError: none of the runs has been evaluated.
    """
    rows, left = {}, []
    for name, models in subject.groups.items():
        found = [evaluated(model, subject.evaluations) for model in models]
        left += [str(model) for model, row in zip(models, found) if row is None]
        if None not in found:
            days = [device_days(model) for model in models]
            rows[name] = {
                **over_seeds(found),
                "device_days": None if None in days else float(np.mean(days)),
                "images": found[0]["images"],
                "seeds": len(models),
            }
    if not rows:
        raise UserError(
            f"{' and '.join(left)} has not been evaluated with the weights that it has (in "
            f"{(*subject.evaluations, subject.models[0].runs[0].folder.evaluation)[0]}): evaluate it first"
        )
    said = []
    for name, row in rows.items():
        shown = [f"{what} {row[what]:.4g}" for what in _main_names(row)]
        cost = "unknown time" if row["device_days"] is None else f"{row['device_days']:.3g} days"
        said.append(f"{name} reaches {', '.join(shown)} after {cost} of training")
    also = f" ({', '.join(left)} has not been evaluated)" if left else ""
    return Findings({"rows": rows}, f"{'; '.join(said)}{also}.")


def _main_names(row: dict[str, Any]) -> list[str]:
    left_out = ("device_days", "images", "seeds", "density", "coverage")
    return [name for name in row if name not in left_out and not name.endswith(ERROR)]


def device_days(model: Model) -> float | None:
    """Days of this machine that training took by its logged speeds, or None without logs."""
    days = 0.0
    for run in model.runs:
        metrics = run.folder.metrics()
        if "images_per_second" not in metrics:
            return None
        days += training_seconds(metrics, run.config.training.batch_size) / SECONDS_A_DAY
    return days


def as_texts(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The titles of a table's columns, and its lines; errors stand behind numbers."""
    names = dict.fromkeys(name for row in rows.values() for name in row if not name.endswith(ERROR))
    cells = [[title, *(_cell(row, name) for name in names)] for title, row in rows.items()]
    return ["", *(name.replace("_", " ") if name.islower() else name for name in names)], cells


def draw_table(found: Findings, path: str | os.PathLike) -> None:
    """The rows as a table."""
    plots.table(path, *as_texts(found.numbers["rows"]))


def _cell(row: dict[str, Any], name: str) -> str:
    value, error = row.get(name), row.get(name + ERROR)
    if value is None:
        return "-"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return text if error is None else f"{text} ± {error:.2g}"
