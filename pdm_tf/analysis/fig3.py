"""Fig. 3: training losses of x, eps and v, with and without patches, from the logs of runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from pdm_tf import plots
from pdm_tf.analysis.study import Result, Study
from pdm_tf.errors import UserError
from pdm_tf.models import Model
from pdm_tf.training.metrics import QUARTERS

SMOOTHING = 10  # log lines of a running mean
EVEN = "mean squared error of x, all t alike"
AS_TRAINED = "mean squared error of x, quarters of training's t alike"


def measure(study: Study) -> Result:
    """Smoothed curves of the loss, one for each group of seeds: their mean and standard deviation.

    "mse" is the mean squared error of x over four quarters of t, which every run logs whatever its loss: over
    all t alike only where training draws t uniformly, at one patch size. "simple_loss" is L_simple, where all
    runs have one weighting. UserError if a run has no log, or a model is several runs.
    """
    weightings = sorted({model.config.diffusion.loss_weighting for model in study.models})
    kinds = ["mse", *(["simple_loss"] if len(weightings) == 1 else [])]
    curves = {}
    for title, models in study.groups.items():
        logs = [_read_log(model) for model in models]
        curves[title] = {
            "seeds": [model.config.seed for model in models],
            **{kind: _mean_curve([log[kind] for log in logs]) for kind in kinds},
        }
    even = all(
        model.config.diffusion.t_distribution == "uniform" and not model.config.network.patch_switch_t
        for model in study.models
    )
    numbers = {"weightings": weightings, "mse": EVEN if even else AS_TRAINED, "curves": curves}
    return Result(numbers, _sentence(numbers), panels=_panels(numbers))


def _read_log(model: Model) -> dict[str, np.ndarray]:
    """ "mse" and "simple_loss" of a run, each (n, 2) of step and smoothed value."""
    if len(model.runs) > 1:
        raise UserError(f"{model.title}: experts have a loss each: name one run a curve")
    folder = model.runs[0].folder
    metrics = folder.metrics()
    if "simple_loss" not in metrics:
        raise UserError(
            f"{folder} has no {folder.metrics_file.name} of a training: this figure needs runs that were "
            "trained here"
        )
    # Where a quarter of t is seldom drawn, a line may lack it.
    none = np.zeros((0, 2))
    quarters = [metrics.get(f"mse_quarter{quarter + 1}", none) for quarter in range(QUARTERS)]
    steps = functools.reduce(np.intersect1d, [quarter[:, 0] for quarter in quarters])
    if not len(steps):
        raise UserError(f"{folder} has no line of its log with all quarters of t: leave it out here")
    values = [quarter[np.isin(quarter[:, 0], steps), 1] for quarter in quarters]
    mse = np.stack([steps, np.mean(values, axis=0)], axis=1)
    kept = {"mse": mse, "simple_loss": metrics["simple_loss"]}
    return {name: plots.smoothed(series, SMOOTHING) for name, series in kept.items()}


def _mean_curve(series: Sequence[np.ndarray]) -> dict[str, list | None]:
    """Steps that all runs have, the mean, and the standard deviation over runs (None of one)."""
    first = max(one[0, 0] for one in series)
    last = min(one[-1, 0] for one in series)
    steps = series[0][(series[0][:, 0] >= first) & (series[0][:, 0] <= last), 0]
    values = np.array([np.interp(steps, one[:, 0], one[:, 1]) for one in series])
    spread = values.std(axis=0, ddof=1).tolist() if len(series) > 1 else None
    return {"step": steps.tolist(), "mean": values.mean(axis=0).tolist(), "spread": spread}


def _sentence(numbers: dict) -> str:
    curves = {title: curve["mse"] for title, curve in numbers["curves"].items() if curve["mse"]["step"]}
    if not curves:
        return "The runs have no steps in common."
    step = min(curve["step"][-1] for curve in curves.values())
    ends = {title: float(np.interp(step, curve["step"], curve["mean"])) for title, curve in curves.items()}
    values = [f"{value:.4g} for {title}" for title, value in sorted(ends.items(), key=lambda item: item[1])]
    seeds = min(len(curve["seeds"]) for curve in numbers["curves"].values())
    return (
        f"At step {step:,.0f} the {numbers['mse']}, is {', '.join(values)} "
        f"({'one seed' if seeds == 1 else f'means over at least {seeds} seeds'})."
    )


def _panels(numbers: dict) -> list[plots.Panel]:
    """Curves with the spread over seeds."""
    titles = {"mse": numbers["mse"], "simple_loss": f"L_simple, {numbers['weightings'][0]}"}
    panels = []
    for kind, title in titles.items():
        lines = {}
        for label, curves in numbers["curves"].items():
            if kind in curves:
                curve = curves[kind]
                spread = None if curve["spread"] is None else np.array(curve["spread"])
                lines[label] = (np.array(curve["step"]), np.array(curve["mean"]), spread)
        if lines:
            panels.append(plots.Panel(title, "step", lines, "log"))
    return panels
