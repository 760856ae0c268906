"""Fig. 2: the distortion ||x - x_theta|| against t, over that of the smallest P and over x*'s."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from pdm_tf import plots
from pdm_tf.analysis.subject import Answers, Findings, Subject, noisy
from pdm_tf.data import held_out_split
from pdm_tf.progress import bar

TIMES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # parts of the process
LEVEL = 1 / 127.5  # of 8 bits; a smaller distortion of x* is none to divide by
OPTIMUM = "x*"


def distortion(subject: Subject) -> Findings:
    """RMSE of each model on held-out images, if there are any, and on training images beside x*'s.

    Several seeds of a model are one: their mean, with their deviation for its error.

    x* is that of the training images, so in the mean over all of them nothing is better. On held-out images
    it is no bound: at little noise it answers with a training image.
    """
    splits = {"train": "train", "held_out": held_out_split(subject.info)}
    optimum = subject.optimum()
    t = [round(part * (len(optimum.schedule) - 1)) for part in TIMES]
    denoisers = {name: [one.denoiser for one in models] for name, models in subject.groups.items()}
    denoisers[OPTIMUM] = [optimum]
    answers = {
        name: [Answers(denoiser, subject.batch_size) for denoiser in own] for name, own in denoisers.items()
    }
    numbers = {"t": t, "seeds": {name: len(own) for name, own in subject.groups.items()}, "splits": {}}
    for kind, split in splits.items():
        if split:
            squared = _squared_errors(subject, answers, split, t)
            numbers["splits"][kind] = _of_split(squared, subject)
    return Findings(numbers, _sentence(numbers, subject))


def _squared_errors(
    subject: Subject, answers: dict[str, list[Answers]], split: str, t: Sequence[int]
) -> dict[str, np.ndarray]:
    """Mean squared error of each seed of each denoiser, at each t, on each image: name -> (S, T, N)."""
    images, labels = subject.examples(split)
    found = {name: [[] for _ in own] for name, own in answers.items()}
    for at in bar(t, desc=f"fig2, {split}", unit="t"):
        z = noisy(answers[OPTIMUM][0].denoiser, images, at, subject.seed)
        for name, own in answers.items():
            for seed, answer in enumerate(own):
                errors = np.mean(np.square(answer(z, at, labels) - images), axis=(1, 2, 3))
                found[name][seed].append(errors)
    return {name: np.array(values, np.float64) for name, values in found.items()}


def _of_split(squared: dict[str, np.ndarray], subject: Subject) -> dict:
    """RMSE of each denoiser and its ratios, with their errors."""
    base = smallest(subject)
    names, result = list(subject.groups), {"images": squared[OPTIMUM].shape[2], "rmse": {}, "rmse error": {}}
    for name, values in squared.items():
        result["rmse"][name], result["rmse error"][name] = _over_seeds(values, None)
    ratios = {f"{name} over {base}": (name, base) for name in names if name != base}
    ratios |= {f"{name} over {OPTIMUM}": (name, OPTIMUM) for name in names}
    result["ratio"], result["ratio error"] = {}, {}
    for title, (above, below) in ratios.items():
        found = _over_seeds(squared[above], squared[below].mean(axis=0))
        result["ratio"][title], result["ratio error"][title] = found
    return result


def smallest(subject: Subject) -> str:
    """The group of the smallest P."""
    return min(subject.groups, key=lambda name: subject.groups[name][0].config.network.patch_size)


def _over_seeds(above: np.ndarray, below: np.ndarray | None) -> tuple[list, list]:
    """sqrt(mean above / mean below) at each t and its error, of (S, T, N) and (T, N).

    Of several seeds the mean over them and their deviation.
    """
    found = [_with_error(own, below) for own in above]
    if len(found) == 1:
        return found[0]
    values, errors = [], []
    for own in zip(*(ratios for ratios, _ in found)):
        known = None not in own
        values.append(float(np.mean(own)) if known else None)
        errors.append(float(np.std(own, ddof=1)) if known else None)
    return values, errors


def _with_error(above: np.ndarray, below: np.ndarray | None) -> tuple[list, list]:
    """sqrt(mean above / mean below) over images, of (T, N), at each t, and its jackknife error.

    None where `below` is next to nothing, or where nobody knows the ratio to half of itself.
    """
    values, errors = [], []
    for number, row in enumerate(above):
        other, count = np.ones_like(row) if below is None else below[number], len(row)
        value, error = None, None
        if below is None or np.sqrt(np.mean(other)) > LEVEL / 2:
            value = float(np.sqrt(np.mean(row) / np.mean(other)))
            if count > 1:
                without = np.sqrt((np.sum(row) - row) / np.maximum(np.sum(other) - other, 1e-30))
                error = float(np.sqrt((count - 1) * np.mean((without - without.mean()) ** 2)))
        unknown = below is not None and error is not None and error > value / 2
        values.append(None if unknown else value)
        errors.append(None if unknown else error)
    return values, errors


def _sentence(numbers: dict, subject: Subject) -> str:
    base, t = smallest(subject), numbers["t"]
    kind = "held_out" if "held_out" in numbers["splits"] else "train"
    ratios = {
        title: ratio
        for title, ratio in numbers["splits"][kind]["ratio"].items()
        if title.endswith(f" over {base}")
    }
    where = "held-out" if kind == "held_out" else "training"
    if not ratios:
        rmse, best = (numbers["splits"][kind]["rmse"][name] for name in (base, OPTIMUM))
        nearer = [at for at, mine, other in zip(t, rmse, best) if mine < other]
        return (
            f"On {where} images the RMSE of {base} grows from {rmse[0]:.3f} at t = {t[0]} to {rmse[-1]:.3f} "
            f"at t = {t[-1]}, that of x* of the training images from {best[0]:.3f} to {best[-1]:.3f}; {base} "
            f"is nearer to x at {len(nearer)} of {len(t)} t; a ratio as in the paper's figure needs runs of "
            "several patch sizes."
        )
    said = [f"{title} is {_course(t, ratio)}" for title, ratio in ratios.items()]
    return f"On {where} images the RMSE of {', of '.join(said)}."


def _course(t: Sequence[int], ratio: Sequence[float | None]) -> str:
    """How a ratio goes with t, in words."""
    first = next((f"{value:.2f} at t = {at} and " for at, value in zip(t, ratio) if value is not None), "")
    start = _from(t, ratio)
    if start is not None:
        return f"{first}at most 1.05 from t = {start} on"
    return f"{first}still more than 1.05 at t = {t[-1]}"


def _from(t: Sequence[int], ratio: Sequence[float | None]) -> int | None:
    """The first t from which on the ratio stays within 5% of 1, or below."""
    above = [number for number, value in enumerate(ratio) if value is None or value > 1.05]
    start = above[-1] + 1 if above else 0
    return t[start] if start < len(t) else None


def draw_distortion(found: Findings, path: str | os.PathLike) -> None:
    """RMSE and, as in the paper's figure, its ratio to that of the smallest P (of one P: to x*'s)."""
    t, panels = np.array(found.numbers["t"]), []
    for kind, values in found.numbers["splits"].items():
        title = {"train": "training images", "held_out": "held-out images"}[kind]
        panels.append(plots.Panel(f"RMSE, {title}", "t", _lines(t, values, "rmse")))
        lines = _lines(t, values, "ratio")
        beside = {name: line for name, line in lines.items() if not name.endswith(f" over {OPTIMUM}")}
        ratio = {name: line for name, line in (beside or lines).items() if np.isfinite(line[1]).any()}
        if ratio:
            panels.append(plots.Panel(f"ratio, {title}", "t", ratio, "linear" if beside else "log"))
    plots.draw(path, panels=panels)


def _lines(t: np.ndarray, values: dict, name: str) -> dict:
    def column(numbers):
        return np.array([np.nan if number is None else number for number in numbers])

    errors = values[f"{name} error"]
    return {title: (t, column(numbers), column(errors[title])) for title, numbers in values[name].items()}
