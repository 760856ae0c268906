"""Figs. 1a and 4: x_theta beside x*, as t grows and at one t of much noise."""

from __future__ import annotations

import os

import numpy as np

from pdm_tf import plots
from pdm_tf.analysis.subject import Answers, Findings, Subject, gradient_energy, noisy, rmse
from pdm_tf.images import to_uint8
from pdm_tf.progress import bar

TIMES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # parts of the process
MUCH_NOISE = 0.97  # t = 970 of 1000
COLUMNS = 6


def as_t_grows(subject: Subject) -> Findings:
    """x_theta and x* of training images at eleven t (Fig. 1a)."""
    images, labels = subject.examples()
    optimum = subject.optimum()
    answers = {name: Answers(model.denoiser, subject.batch_size) for name, model in subject.titles.items()}
    steps = len(optimum.schedule)
    numbers = {"t": [], "images_averaged": [], "energy_optimum": [], "energy": {}, "rmse_to_optimum": {}}
    shown = {"z_t": [], **{name: [] for name in answers}, "x*": []}
    data = gradient_energy(images)
    for part in bar(TIMES, desc="fig1a", unit="t"):
        t = round(part * (steps - 1))
        z = noisy(optimum, images, t, subject.seed)
        best, counts = optimum.posterior(z, np.full(len(z), t, np.int32), labels)
        best = best.numpy()
        numbers["t"].append(t)
        numbers["images_averaged"].append(float(np.median(counts)))
        numbers["energy_optimum"].append(gradient_energy(best) / data)
        shown["z_t"].append(z[0])
        shown["x*"].append(best[0])
        for name, answer in answers.items():
            x = answer(z, t, labels)
            shown[name].append(x[0])
            numbers["energy"].setdefault(name, []).append(gradient_energy(x) / data)
            numbers["rmse_to_optimum"].setdefault(name, []).append(rmse(x, best))
    return Findings(numbers, _of_growth(numbers), {key: to_uint8(value) for key, value in shown.items()})


def _of_growth(numbers: dict) -> str:
    name, energies = next(iter(numbers["energy"].items()))
    return (
        f"Predictions lose detail as t grows: x_theta ({name}) keeps {_fall(numbers['t'], energies)}, x* "
        f"{_fall(numbers['t'], numbers['energy_optimum'])}; x* averages "
        f"{numbers['images_averaged'][-1]:.0f} training images at t = {numbers['t'][-1]}, and is "
        f"{_single(numbers['t'], numbers['images_averaged'])}."
    )


def _fall(t: list[int], energies: list[float]) -> str:
    """From which t on less than half of the images' gradient energy is left, in words."""
    below = [at for at, energy in zip(t, energies) if energy < 0.5]
    return f"less than half of the images' gradient energy from t = {below[0]} on" if below else (
        "more than half of the images' gradient energy at every t"
    )  # fmt: skip


def _single(t: list[int], counts: list[float]) -> str:
    alone = [at for at, count in zip(t, counts) if count < 1.01]
    return f"up to t = {alone[-1]} a single one of them" if alone else "nowhere a single one"


def draw_growth(found: Findings, path: str | os.PathLike) -> None:
    """Rows of z_t, x_theta and x* of one image, and the detail that is left."""
    numbers, t = found.numbers, np.array(found.numbers["t"])
    lines = {name: (t, np.array(values), None) for name, values in numbers["energy"].items()}
    lines["x*"] = (t, np.array(numbers["energy_optimum"]), None)
    apart = {name: (t, np.array(values), None) for name, values in numbers["rmse_to_optimum"].items()}
    plots.draw(
        path, found.shown, [f"t = {at}" for at in t],
        [
            plots.Panel("gradient energy over the images' own", "t", lines),
            plots.Panel("RMSE of x_theta to x*", "t", apart),
            plots.Panel("images that x* averages", "t", {
                "effective number": (t, np.array(numbers["images_averaged"]), None)
            }, "log"),
        ],
    )  # fmt: skip


def at_much_noise(subject: Subject) -> Findings:
    """x_theta of each model at t = 0.97 T beside x* of one class (Fig. 4)."""
    label = subject.labels[0] if subject.labels else (0 if subject.info.num_classes else None)
    images, labels = subject.examples(label=label)
    optimum = subject.optimum()
    t = round(MUCH_NOISE * len(optimum.schedule))
    z = noisy(optimum, images, t, subject.seed)
    best = optimum(z, np.full(len(z), t, np.int32), labels)[0].numpy()
    shown, energy, apart = {"z_t": z}, {}, {}
    for name, model in subject.titles.items():
        shown[name] = x = Answers(model.denoiser, subject.batch_size)(z, t, labels)
        energy[name], apart[name] = gradient_energy(x) / gradient_energy(best), rmse(x, best)
    shown["x*"] = best
    about = "all images" if label is None else f"the class {_name_of(subject, label)}"
    said = [f"{energy[name]:.2f} for {name} (RMSE to x* {apart[name]:.3f})" for name in energy]
    kinds = {model.config.diffusion.prediction for model in subject.models}
    missing = sorted({"eps", "x"} - kinds)
    beside = (
        f"; the paper's figure has an {' and an '.join(missing)}-network beside: give its run too"
        if missing
        else ""
    )
    sentence = (
        f"At t = {t} the gradient energy of x_theta over that of x* of {about} is {' and '.join(said)}: more "
        f"than 1 is noise that x* does not have{beside}."
    )
    numbers = {"t": t, "label": label, "energy_over_optimum": energy, "rmse_to_optimum": apart}
    return Findings(numbers, sentence, {key: to_uint8(value[:COLUMNS]) for key, value in shown.items()})


def _name_of(subject: Subject, label: int) -> str:
    names = subject.info.label_names
    return f"“{names[label]}”" if names else str(label)


def draw_much_noise(found: Findings, path: str | os.PathLike) -> None:
    """Rows of z_t, each x_theta and x*."""
    plots.draw(path, found.shown)
