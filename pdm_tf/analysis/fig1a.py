"""Fig. 1a: x_theta beside x* as t grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from pdm_tf import plots
from pdm_tf.analysis.study import Predictor, Result, Study, add_noise, gradient_energy, rmse
from pdm_tf.progress import bar

TIMES = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # t / T


def measure(study: Study) -> Result:
    """x_theta and x* of training images at eleven t: gradient energy, and RMSE to x*."""
    images, labels = study.examples()
    optimum = study.optimum()
    posterior = tf.function(optimum.posterior)
    predictors = {title: Predictor(model.denoiser, study.batch_size) for title, model in study.titles.items()}
    numbers = {
        "t": [round(part * (len(optimum.schedule) - 1)) for part in TIMES],
        "images_averaged": [],
        "energy_optimum": [],
        "energy": {title: [] for title in predictors},
        "rmse_to_optimum": {title: [] for title in predictors},
    }
    rows = {"z_t": [], **{title: [] for title in predictors}, "x*": []}
    data_energy = gradient_energy(images)
    for t in bar(numbers["t"], desc="fig1a", unit="t"):
        z = add_noise(optimum, images, t, study.seed)
        best, averaged = posterior(*map(tf.constant, (z, np.full(len(z), t, np.int32), labels)))
        best = best.numpy()
        numbers["images_averaged"].append(float(np.median(averaged)))
        numbers["energy_optimum"].append(gradient_energy(best) / data_energy)
        rows["z_t"].append(z[0])
        rows["x*"].append(best[0])
        for title, predict in predictors.items():
            x = predict(z, t, labels)
            rows[title].append(x[0])
            numbers["energy"][title].append(gradient_energy(x) / data_energy)
            numbers["rmse_to_optimum"][title].append(rmse(x, best))
    return Result(numbers, _sentence(numbers), rows, [f"t = {t}" for t in numbers["t"]], _panels(numbers))


def _sentence(numbers: dict) -> str:
    title, energies = next(iter(numbers["energy"].items()))
    t = numbers["t"]
    averaged = numbers["images_averaged"]
    single = [at for at, count in zip(t, averaged) if count < 1.01]
    where = f"up to t = {single[-1]} a single one of them" if single else "nowhere a single one"
    return (
        f"Predictions lose detail as t grows: x_theta ({title}) keeps {_kept_energy(t, energies)}, x* "
        f"{_kept_energy(t, numbers['energy_optimum'])}; x* averages {averaged[-1]:.0f} training images at "
        f"t = {t[-1]}, and is {where}."
    )


def _kept_energy(t: Sequence[int], energies: Sequence[float]) -> str:
    """The first t with less than half of the images' gradient energy, in words."""
    below = [at for at, energy in zip(t, energies) if energy < 0.5]
    if not below:
        return "more than half of the images' gradient energy at every t"
    return f"less than half of the images' gradient energy from t = {below[0]} on"


def _panels(numbers: dict) -> list[plots.Panel]:
    t = np.array(numbers["t"])

    def lines(values: dict) -> dict:
        return {title: (t, np.array(row), None) for title, row in values.items()}

    energies = {**numbers["energy"], "x*": numbers["energy_optimum"]}
    averaged = {"effective number": numbers["images_averaged"]}
    return [
        plots.Panel("gradient energy over the images' own", "t", lines(energies)),
        plots.Panel("RMSE of x_theta to x*", "t", lines(numbers["rmse_to_optimum"])),
        plots.Panel("images that x* averages", "t", lines(averaged), "log"),
    ]
