"""Fig. 4: x_theta beside x* at one t of much noise."""

from __future__ import annotations

import numpy as np

from pdm_tf.analysis.study import Predictor, Result, Study, add_noise, gradient_energy, rmse

TIME = 0.97  # t / T
COLUMNS = 6


def measure(study: Study) -> Result:
    """x_theta of each model at t = 0.97 T beside x*, of images of one class where models are conditional."""
    optimum = study.optimum()
    label = study.labels[0] if study.labels else (0 if optimum.conditional else None)
    images, labels = study.examples(label=label)
    t = int(TIME * len(optimum.schedule))
    z = add_noise(optimum, images, t, study.seed)
    best = optimum(z, np.full(len(z), t, np.int32), labels)[0].numpy()
    rows = {"z_t": z}
    energy = {}
    distance = {}
    for title, model in study.titles.items():
        x = Predictor(model.denoiser, study.batch_size)(z, t, labels)
        rows[title] = x
        energy[title] = gradient_energy(x) / gradient_energy(best)
        distance[title] = rmse(x, best)
    rows["x*"] = best
    numbers = {"t": t, "label": label, "energy_over_optimum": energy, "rmse_to_optimum": distance}
    images = {title: row[:COLUMNS] for title, row in rows.items()}
    return Result(numbers, _sentence(numbers, study, optimum.conditional), images)


def _sentence(numbers: dict, study: Study, conditional: bool) -> str:
    label = numbers["label"]
    names = study.info.label_names
    data = f"the class {f'“{names[label]}”' if names else label}" if conditional else "all images"
    values = [
        f"{energy:.2f} for {title} (RMSE to x* {numbers['rmse_to_optimum'][title]:.3f})"
        for title, energy in numbers["energy_over_optimum"].items()
    ]
    missing = sorted({"eps", "x"} - {model.config.diffusion.prediction for model in study.models})
    advice = (
        f"; the paper's figure has an {' and an '.join(missing)}-network beside: give its run too"
        if missing
        else ""
    )
    return (
        f"At t = {numbers['t']} the gradient energy of x_theta over that of x* of {data} is "
        f"{' and '.join(values)}: more than 1 is noise that x* does not have{advice}."
    )
