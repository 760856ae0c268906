"""Fig. 2: the distortion ||x - x_theta|| against t, and its ratio to that of the smallest P and of x*."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pdm_tf import plots
from pdm_tf.analysis.study import Predictor, Result, Study, add_noise
from pdm_tf.data import held_out_split
from pdm_tf.progress import bar

TIMES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # t / T
LEVEL = 1 / 127.5  # one of 8 bits; nothing is divided by a smaller distortion
OPTIMUM = "x*"
SPLIT_TITLES = {"train": "training", "held_out": "held-out"}


def measure(study: Study) -> Result:
    """RMSE of each model and of x*, on training images and, if there are any, held-out ones.

    Several seeds of a model are one curve: their mean, with their standard deviation as its error.

    x* is that of the training images, so in the mean over all of them nothing is better. On held-out images
    it is no bound: at little noise its answer is a training image. Where several models are compared it is
    left out for data sets that do not fit into memory, which would be decoded for each t.
    """
    optimum = study.optimum()
    t = [round(part * (len(optimum.schedule) - 1)) for part in TIMES]
    denoisers = {title: [model.denoiser for model in models] for title, models in study.groups.items()}
    if len(denoisers) == 1 or optimum.in_memory:
        denoisers[OPTIMUM] = [optimum]
    predictors = {
        title: [Predictor(denoiser, study.batch_size) for denoiser in seeds]
        for title, seeds in denoisers.items()
    }
    smallest = min(study.groups, key=lambda title: study.groups[title][0].config.network.patch_size)
    numbers = {
        "t": t,
        "seeds": {title: len(models) for title, models in study.groups.items()},
        "smallest": smallest,
        "splits": {},
    }
    for kind, split in (("train", "train"), ("held_out", held_out_split(study.info))):
        if split:
            images, labels = study.examples(split)
            squared = {title: [[] for _ in seeds] for title, seeds in predictors.items()}
            for at in bar(t, desc=f"fig2, {split}", unit="t"):
                z = add_noise(optimum, images, at, study.seed)
                for title, seeds in predictors.items():
                    for seed, predict in enumerate(seeds):
                        errors = np.mean(np.square(predict(z, at, labels) - images), axis=(1, 2, 3))
                        squared[title][seed].append(errors)
            squared = {title: np.array(seeds, np.float64) for title, seeds in squared.items()}
            curves = _curves(squared, smallest)
            crossings = {title: _crossing(t, r["value"]) for title, r in curves["ratio_to_smallest"].items()}
            numbers["splits"][kind] = {"images": len(images), **curves, "crossing": crossings}
    return Result(numbers, _sentence(numbers), panels=_panels(numbers))


def _curves(squared: dict[str, np.ndarray], smallest: str) -> dict[str, dict[str, dict[str, list]]]:
    """RMSE and its ratios by title, of squared errors (seeds, T, N)."""

    def ratios(below: str) -> dict:
        denominator = squared[below].mean(axis=0)
        models = [title for title in squared if title not in (below, OPTIMUM)]
        return {title: _over_seeds(squared[title], denominator) for title in models}

    return {
        "rmse": {title: _over_seeds(seeds, None) for title, seeds in squared.items()},
        "ratio_to_smallest": ratios(smallest),
        "ratio_to_optimum": ratios(OPTIMUM) if OPTIMUM in squared else {},
    }


def _over_seeds(above: np.ndarray, below: np.ndarray | None) -> dict[str, list[float | None]]:
    """sqrt(mean above / mean below) at each t, of (seeds, T, N) and (T, N): value and error.

    The error is the jackknife's over images, or of several seeds their standard deviation. None where `below`
    is next to nothing, or where the jackknife's error of a seed's ratio is more than half of it.
    """
    values, errors = zip(*(_over_images(seed, below) for seed in above))
    value = np.mean(values, axis=0)
    error = errors[0] if len(errors) == 1 else np.std(values, axis=0, ddof=1)
    return {
        name: [None if np.isnan(number) else float(number) for number in numbers]
        for name, numbers in (("value", value), ("error", error))
    }


def _over_images(above: np.ndarray, below: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Value and jackknife error over images, each (T,), of (T, N) and (T, N); NaN for None."""
    other = np.ones_like(above) if below is None else below
    count = above.shape[1]
    value = np.sqrt(above.mean(axis=1) / np.maximum(other.mean(axis=1), 1e-30))
    sums = above.sum(axis=1, keepdims=True) - above
    without = np.sqrt(sums / np.maximum(other.sum(axis=1, keepdims=True) - other, 1e-30))
    error = np.sqrt((count - 1) * without.var(axis=1)) if count > 1 else np.full(len(value), np.nan)
    if below is not None:
        unknown = (np.sqrt(other.mean(axis=1)) <= LEVEL / 2) | (error > value / 2)
        value = np.where(unknown, np.nan, value)
        error = np.where(unknown, np.nan, error)
    return value, error


def _sentence(numbers: dict) -> str:
    t = numbers["t"]
    smallest = numbers["smallest"]
    kind = "held_out" if "held_out" in numbers["splits"] else "train"
    curves = numbers["splits"][kind]
    where = f"On {SPLIT_TITLES[kind]} images the RMSE of"
    if curves["ratio_to_smallest"]:
        courses = [
            f"{title} over {smallest} is {_course(t, ratio['value'], curves['crossing'][title])}"
            for title, ratio in curves["ratio_to_smallest"].items()
        ]
        return f"{where} {', of '.join(courses)}."
    rmse = curves["rmse"][smallest]["value"]
    best = curves["rmse"][OPTIMUM]["value"]
    nearer = sum(mine < other for mine, other in zip(rmse, best))
    return (
        f"{where} {smallest} grows from {rmse[0]:.3f} at t = {t[0]} to {rmse[-1]:.3f} at t = {t[-1]}, that "
        f"of x* of the training images from {best[0]:.3f} to {best[-1]:.3f}; {smallest} is nearer to x at "
        f"{nearer} of {len(t)} t; a ratio as in the paper's figure needs runs of several patch sizes."
    )


def _crossing(t: Sequence[int], ratio: Sequence[float | None]) -> float | None:
    """The t at which a ratio first comes to 1, linear between two t: a boundary of experts."""
    known = [(at, value) for at, value in zip(t, ratio) if value is not None]
    for (before, above), (after, below) in zip(known, known[1:]):
        if above != 1 and (above - 1) * (below - 1) <= 0:
            return before + (after - before) * (above - 1) / (above - below)
    return None


def _course(t: Sequence[int], ratio: Sequence[float | None], crossing: float | None) -> str:
    """A ratio's first value, its crossing of 1, and from which t on it is 1.05 at most, in words."""
    first = next((f"{value:.2f} at t = {at}, " for at, value in zip(t, ratio) if value is not None), "")
    if crossing is not None:
        first += f"1 at t = {crossing:.0f}, "
    above = [number for number, value in enumerate(ratio) if value is None or value > 1.05]
    start = above[-1] + 1 if above else 0
    if start < len(t):
        return f"{first}at most 1.05 from t = {t[start]} on"
    return f"{first}still more than 1.05 at t = {t[-1]}"


def _panels(numbers: dict) -> list[plots.Panel]:
    """RMSE and, as in the paper's figure, its ratio to that of the smallest P (of one P: to that of x*)."""
    t = np.array(numbers["t"])
    panels = []
    for kind, curves in numbers["splits"].items():
        title = f"{SPLIT_TITLES[kind]} images"
        panels.append(plots.Panel(f"RMSE, {title}", "t", _lines(t, curves["rmse"])))
        if curves["ratio_to_smallest"]:
            below, ratios, scale = numbers["smallest"], curves["ratio_to_smallest"], "linear"
        else:
            below, ratios, scale = OPTIMUM, curves["ratio_to_optimum"], "log"
        lines = _lines(t, {f"{title} over {below}": ratio for title, ratio in ratios.items()})
        lines = {label: line for label, line in lines.items() if np.isfinite(line[1]).any()}
        if lines:
            panels.append(plots.Panel(f"ratio, {title}", "t", lines, scale))
    return panels


def _lines(t: np.ndarray, curves: dict[str, dict[str, list]]) -> dict:
    return {
        label: (t, np.array(curve["value"], float), np.array(curve["error"], float))
        for label, curve in curves.items()
    }
