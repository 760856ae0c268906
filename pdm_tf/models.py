"""Run folders -> one denoiser with its origin: one network's, or several experts' (Section 4.1)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pdm_tf.averages import plan, reconstruct
from pdm_tf.config.fields import Config, changes
from pdm_tf.config.words import leaves
from pdm_tf.denoiser import Denoiser, Experts, build_denoiser, build_network
from pdm_tf.errors import UserError
from pdm_tf.run import RunFolder
from pdm_tf.weights import assign_arrays, read_arrays


class Run(NamedTuple):
    """One run of a model: its folder and its config."""

    folder: RunFolder
    config: Config


class Loaded(NamedTuple):
    """A model from run folders.

    Attributes:
      denoiser: with averaged weights.
      config: that of the run with the least noise.
      origin: JSON values for each network: the file of its weights, t_start, t_stop, patch_size, prediction,
        and patch_switch_t if it has two sizes; of averages of a length that was asked for, what they are in
        place of a file, ema_length and step.
    """

    denoiser: Denoiser
    config: Config
    origin: list[dict[str, Any]]


def read_runs(*run_dirs: str | os.PathLike) -> list[Run]:
    """The run that does a whole process alone, or the experts that make one up, from the least noise on.

    Their intervals of t come from their own configs; they may be named in any order.

    Raises:
      UserError: no run, or runs that do not make up one whole process.
    """
    runs = [Run(folder, folder.config()) for folder in map(RunFolder, run_dirs)]
    runs.sort(key=lambda run: run.config.diffusion.t_start)
    _check_alike(runs)
    _check_whole(runs)
    return runs


def read_models(*run_dirs: str | os.PathLike) -> list[list[Run]]:
    """The models of several runs: each that does a whole process alone is one, the others are experts of one.

    Raises:
      UserError: as `read_runs`.
    """
    whole, parts = [], []
    for run_dir in run_dirs:
        diffusion = RunFolder(run_dir).config().diffusion
        alone = (diffusion.t_start, diffusion.t_stop) == (0, diffusion.num_timesteps)
        (whole if alone else parts).append(run_dir)
    return [*(read_runs(run_dir) for run_dir in whole), *([read_runs(*parts)] if parts else [])]


def load(runs: Sequence[Run], ema_length: float | None = None) -> Loaded:
    """The model of `read_runs`' runs.

    Args:
      runs: from `read_runs`.
      ema_length: None takes the averages of `training.ema_decay`; a number makes those of that length, the
        part of the run that they go over (`pdm_tf.averages`), from the runs' snapshots.
    Raises:
      UserError: a run has no weights, or damaged ones; or no snapshots, or too few for the length.
    """
    weights = [read_weights(run, ema_length) for run in runs]
    denoisers = [build_denoiser(run.config.diffusion, build_network(run.config)) for run in runs]
    for denoiser, (arrays, origin) in zip(denoisers, weights):
        assign_arrays(denoiser.variables, arrays, origin["weights"])
    denoiser = denoisers[0] if len(denoisers) == 1 else Experts(denoisers)
    return Loaded(denoiser, runs[0].config, [origin for _, origin in weights])


def check_lengths(runs: Sequence[Run], ema_lengths: Iterable[float]) -> None:
    """Raises UserError if averages of these lengths cannot be made of the runs' snapshots; reads none."""
    for run in runs:
        for length in ema_lengths:
            plan(run.folder, length)


def with_length(loaded: Loaded, runs: Sequence[Run], ema_length: float | None) -> Loaded:
    """`loaded` with the averages of another length, put into its own variables: no new network, no new graph.

    Args:
      loaded: from `load` of the same runs; its variables change, and so does every sampler that uses them.
      runs, ema_length: as for `load`.
    Raises:
      UserError: as `load`; what is missing or damaged is noticed before a variable changes.
    """
    parts = loaded.denoiser.experts if len(runs) > 1 else [loaded.denoiser]
    weights = [read_weights(run, ema_length) for run in runs]
    for denoiser, (arrays, origin) in zip(parts, weights):
        assign_arrays(denoiser.variables, arrays, origin["weights"])
    return loaded._replace(origin=[origin for _, origin in weights])


def read_weights(run: Run, ema_length: float | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A run's averaged weights by variable name, and their origin, an item of `Loaded.origin`; no network
    is made. `ema_length` and errors as of `load`."""
    origin = {
        "t_start": run.config.diffusion.t_start,
        "t_stop": run.config.diffusion.t_stop,
        "patch_size": run.config.network.patch_size,
        "prediction": run.config.diffusion.prediction,
    }
    if run.config.network.patch_switch_t:
        origin["patch_switch_t"] = run.config.network.patch_switch_t
    if ema_length is None:
        weights = run.folder.newest_weights()
        return read_arrays(weights), {"weights": str(weights), **origin}
    average = reconstruct(run.folder, ema_length)
    text = (
        f"{run.folder}: average of length {ema_length:g} at step {average.step:,}, from {average.snapshots} "
        f"snapshots ({average.misplaced:.1%} misplaced)"
    )
    return average.arrays, {"weights": text, "ema_length": ema_length, "step": average.step, **origin}


def _check_alike(runs: Sequence[Run]) -> None:
    """Raises UserError if runs differ in what experts of one model share."""
    first, shared = runs[0], [key for key, leaf in leaves(Config).items() if leaf.rule.shared]
    for run in runs[1:]:
        changed = changes(first.config, run.config)
        problems = ["{} is {} and {}".format(key, *changed[key]) for key in shared if key in changed]
        if run.config.conditional != first.config.conditional:
            problems.append("only one of them knows classes")
        if problems:
            raise UserError(f"{first.folder} and {run.folder} cannot be experts of one model: {problems[0]}")


def _check_whole(runs: Sequence[Run]) -> None:
    """Raises UserError if runs, ordered by t_start, leave a gap in t, or overlap."""
    covered, before = 0, None
    for run in runs:
        start = run.config.diffusion.t_start
        if start > covered:
            raise UserError(_missing(runs, covered, start))
        if start < covered:
            raise UserError(
                f"{before} and {run.folder} were both trained on t = {start}: name runs whose intervals of t "
                "meet without overlapping"
            )
        covered, before = run.config.diffusion.t_stop, run.folder
    if covered < runs[0].config.diffusion.num_timesteps:
        raise UserError(_missing(runs, covered, runs[0].config.diffusion.num_timesteps))


def _missing(runs: Sequence[Run], start: int, stop: int) -> str:
    names, was = [str(run.folder) for run in runs], "was" if len(runs) == 1 else "were"
    return (
        f"{' and '.join(names)} {was} not trained on {start} <= t < {stop}: name the run of that interval "
        f"too, as in {','.join(names)},RUN"
    )
