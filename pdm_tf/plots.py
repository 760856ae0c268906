"""Figures of a run, drawn with matplotlib."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")  # files only: no window system is needed

import matplotlib.pyplot as plt
import numpy as np

from pdm_tf.atomic import atomic_file
from pdm_tf.run import RunFolder


def loss_curve(run: RunFolder, smoothing: int = 10) -> None:
    """Draws L_simple and the mean squared error of x by quarter of the noise levels as the run's loss curve.

    Training losses are running means of `smoothing` log lines, those of the held-out split are as measured.
    """
    metrics = run.metrics()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    _draw(left, metrics, {"simple_loss": "training", "validation/simple_loss": "held out"}, smoothing)
    quarters = {f"mse_quarter{q}": f"quarter {q}{' (least noise)' if q == 1 else ''}" for q in range(1, 5)}
    _draw(right, metrics, quarters, smoothing)
    left.set(title="L_simple", xlabel="step", yscale="log")
    right.set(title="mean squared error of x, by quarter of t", xlabel="step", yscale="log")
    with atomic_file(run.loss_curve) as partial:
        figure.savefig(partial, format="png", dpi=100)
    plt.close(figure)


def _draw(axes, metrics: dict[str, np.ndarray], names: dict[str, str], smoothing: int) -> None:
    for name, label in names.items():
        if name in metrics:
            steps, values = metrics[name].T
            width = 1 if name.startswith("validation") else min(smoothing, len(values))
            smooth = np.convolve(values, np.ones(width) / width, mode="valid")
            axes.plot(steps[len(steps) - len(smooth) :], smooth, label=label, linewidth=1)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
