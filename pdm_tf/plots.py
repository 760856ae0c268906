"""Figures as PNG files, drawn with Matplotlib: rows of images, curves, tables, the loss curve of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from unittest import mock

import numpy as np

from pdm_tf.atomic import atomic_file
from pdm_tf.run import RunFolder

# A notebook's backend, which its processes inherit in MPLBACKEND, need not be one that can be imported here.
with mock.patch.dict(os.environ):
    os.environ.pop("MPLBACKEND", None)
    import matplotlib.style
    from matplotlib.figure import Figure


@contextlib.contextmanager
def png_figure(path: str | os.PathLike, width: float, height: float, **options) -> Iterator[Figure]:
    """Yields a figure to draw in, of a size in inches, and writes it as a PNG of 100 dots per inch.

    No window, and no style: neither MPLBACKEND nor the user's matplotlibrc changes anything.
    """
    with matplotlib.style.context("default", after_reset=True):
        figure = Figure(figsize=(width, height), **options)
        yield figure
        with atomic_file(path) as partial:
            figure.savefig(partial, format="png", dpi=100)


class Panel(NamedTuple):
    """Curves on one pair of axes."""

    title: str
    xlabel: str
    # label -> (x (n,), y (n,), spread (n,) or None), NaN where there is nothing to draw
    lines: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]]
    yscale: str = "linear"  # or "log"


def draw(
    path: str | os.PathLike,
    rows: Mapping[str, np.ndarray] | None = None,
    columns: Sequence[str] = (),
    panels: Sequence[Panel] = (),
) -> None:
    """Writes a PNG: rows of images, title -> uint8 (n, H, W, C), with titled columns; below them panels."""
    rows = rows or {}
    across = max([len(images) for images in rows.values()], default=0)
    heights = [1.3 * len(rows)] * bool(rows) + [3.4] * bool(panels)
    width = max(1.3 * across + 1.2, 4.6 * len(panels))
    with png_figure(path, width, sum(heights), layout="constrained") as figure:
        parts = np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights))
        if rows:
            _draw_rows(parts[0].subplots(len(rows), across, squeeze=False), rows, columns)
        if panels:
            for axes, panel in zip(parts[-1].subplots(1, len(panels), squeeze=False)[0], panels):
                _draw_panel(axes, panel)


def table(path: str | os.PathLike, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes a PNG of a table of texts."""
    widths = [max(map(len, column)) + 2 for column in zip(columns, *rows)]
    with png_figure(path, max(0.085 * sum(widths), 3), 0.35 * (len(rows) + 1) + 0.2) as figure:
        axes = figure.subplots()
        axes.set_axis_off()
        shares = [width / sum(widths) for width in widths]
        drawn = axes.table(rows, colLabels=columns, colWidths=shares, bbox=[0, 0, 1, 1])
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(9)
        for cell in drawn.get_celld().values():
            cell.set_edgecolor("lightgrey")
        figure.subplots_adjust(0.01, 0.02, 0.99, 0.98)


def _draw_rows(grid, rows: Mapping[str, np.ndarray], columns: Sequence[str]) -> None:
    for across, (title, images) in zip(grid, rows.items()):
        across[0].set_ylabel(title, fontsize=8)
        for axes in across:
            axes.set(xticks=[], yticks=[])
            axes.set_frame_on(False)
        for axes, image in zip(across, images):
            grey = image.shape[-1] == 1
            axes.imshow(image[..., 0] if grey else image[..., :3], cmap="gray", vmin=0, vmax=255)
    for axes, title in zip(grid[0], columns):
        axes.set_title(title, fontsize=8)


def _draw_panel(axes, panel: Panel) -> None:
    for label, (x, y, spread) in panel.lines.items():
        (line,) = axes.plot(x, y, label=label, linewidth=1.2, marker="." if len(x) < 30 else None)
        if spread is not None:
            axes.fill_between(x, y - spread, y + spread, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_title(panel.title, fontsize=9)
    axes.set(xlabel=panel.xlabel, yscale=panel.yscale)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)


def loss_curve(run: RunFolder) -> None:
    """Draws L_simple, and the mean squared error of x by quarter of the noise levels, of a run's metrics."""
    quarters = {f"mse_quarter{q}": f"quarter {q}{' (least noise)' if q == 1 else ''}" for q in range(1, 5)}
    losses = {"simple_loss": "training", "validation/simple_loss": "held out"}
    titles = {"L_simple": losses, "mean squared error of x, by quarter of t": quarters}
    metrics = run.metrics()
    draw(run.loss_curve, panels=[Panel(t, "step", _curves(metrics, n), "log") for t, n in titles.items()])


def runs_beside_each_other(path: str | os.PathLike, runs: Mapping[str, RunFolder]) -> bool:
    """Draws held-out losses and scores of runs, by title; False, and no file, if none of them has any."""
    metrics = {title: run.metrics() for title, run in runs.items()}
    panels = []
    for kind, prefix in (("L_simple, held out", "validation/simple"), ("Fréchet distance", "validation/FD")):
        lines = {
            title: (*values.T, None)
            for title, found in metrics.items()
            for name, values in found.items()
            if name.startswith(prefix)
        }
        panels += [Panel(kind, "step", lines, "log")] * bool(lines)
    if panels:
        draw(path, panels=panels)
    return bool(panels)


def _curves(metrics: Mapping[str, np.ndarray], names: Mapping[str, str]) -> dict[str, tuple]:
    """The lines of a `Panel`, of labelled metrics: running means of 10, the held-out split's as measured."""
    curves = {}
    for name in filter(metrics.__contains__, names):
        curves[names[name]] = (*smoothed(metrics[name], 1 if name.startswith("validation") else 10).T, None)
    return curves


def smoothed(series: np.ndarray, width: int) -> np.ndarray:
    """A running mean over `width` lines (step, value) of a metric, (N, 2), or all of a shorter log."""
    width = min(width, len(series))
    values = np.convolve(series[:, 1], np.ones(width) / width, mode="valid")
    return np.stack([series[width - 1 :, 0], values], axis=1)
