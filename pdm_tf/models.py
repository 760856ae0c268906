"""`Model`: run folders -> one denoiser, that of a single run or of several experts (Section 4.1)."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pdm_tf.averages import reconstruct
from pdm_tf.config.fields import SHARED, Config, changes
from pdm_tf.config.words import get, leaves
from pdm_tf.denoiser import Denoiser, MagnifiedDenoiser, SplitDenoiser, build_denoiser, build_network
from pdm_tf.errors import UserError
from pdm_tf.run import RunFolder, step_of
from pdm_tf.weights import assign_arrays, check_finite, read_arrays, variable_names

# The fields that a model and one that guides it share.
SHARED_WITH_GUIDE = (
    "data.image_shape", "data.num_classes",
    "diffusion.num_timesteps", "diffusion.schedule", "diffusion.beta_start", "diffusion.beta_end",
)  # fmt: skip
# Those that decide, with the weights, what a denoiser predicts; and all of the network's.
PROCESS = (*SHARED_WITH_GUIDE, "diffusion.prediction", "diffusion.t_start", "diffusion.t_stop")


class Run(NamedTuple):
    """One run of a model: its folder and its config."""

    folder: RunFolder
    config: Config


Arrays = dict[str, np.ndarray]  # weights by variable name
Origin = dict[str, Any]  # JSON values, see `read_weights`


class Model:
    """The model of one run of the whole process, or of experts for neighbouring intervals of t.

    The networks are built and the weights read on the first use of `denoiser`, in the scope of the strategy
    that is active then.

    Attributes:
      runs: from the least noise on.
      config: that of the run with the least noise, with the smallest `label_dropout` of all; its `sampling`
        may be replaced.
      title: the folders' names.
      ema_length: that of the averages in use; None: those of `training.ema_decay`.
      guide: a weaker model, which guides this one; None: itself without a class.
    """

    guide: Model | None = None

    def __init__(self, runs: Sequence[Run], ema_length: float | None = None):
        self.runs = tuple(runs)
        dropout = min(run.config.diffusion.label_dropout for run in self.runs)  # 0: one needs a class
        self.config = self.runs[0].config.replace({"diffusion.label_dropout": dropout})
        self.title = " + ".join(run.folder.path.absolute().name for run in self.runs)
        self.ema_length = ema_length
        self._origin: list[Origin] = []

    @classmethod
    def from_folders(cls, *run_dirs: str | os.PathLike, ema_length: float | None = None) -> Model:
        """The model of one run, or of experts, in any order; their configs are read and compared.

        Where several were trained on the same t, the one that stops first is used.

        Raises:
          UserError: no run, or runs that do not make up one whole process.
        """
        runs = [Run(folder, folder.config()) for folder in map(RunFolder, run_dirs)]
        runs.sort(key=lambda run: run.config.diffusion.t_stop)
        _check_alike(runs)
        runs = _without_overlaps(runs)
        _check_whole(runs)
        return cls(runs, ema_length)

    def __str__(self) -> str:
        return ",".join(str(run.folder) for run in self.runs)

    @functools.cached_property
    def denoisers(self) -> list[Denoiser]:
        """The denoiser of each run; UserError if one has no weights, or damaged ones."""
        weights = [read_weights(run, self.ema_length) for run in self.runs]
        denoisers = [build_denoiser(run.config.diffusion, build_network(run.config)) for run in self.runs]
        self._assign(denoisers, weights)
        schedule = denoisers[0].schedule
        factors = [_factor(self.config, run.config) for run in self.runs]
        return [
            MagnifiedDenoiser(one, factor, schedule) if factor > 1 else one
            for one, factor in zip(denoisers, factors)
        ]

    @functools.cached_property
    def denoiser(self) -> Denoiser:
        """The whole process's."""
        whole = self.denoisers[0] if len(self.runs) == 1 else SplitDenoiser(self.denoisers)
        if self.guide is not None:
            whole.guide = self.guide.denoiser
        return whole

    @property
    def origin(self) -> list[Origin]:
        """Where the weights of each run are from."""
        _ = self.denoiser
        return self._origin

    @property
    def digest(self) -> str:
        """SHA-256 of weights and process: the identity of what is sampled and measured, wherever it lies."""
        digest = hashlib.sha256(json.dumps([_decisive(run.config) for run in self.runs]).encode())
        for denoiser in self.denoisers:
            variables = dict(zip(variable_names(denoiser.variables), denoiser.variables))
            for name, variable in sorted(variables.items()):
                digest.update(f"{name} {tuple(variable.shape)}".encode())
                digest.update(np.ascontiguousarray(variable.numpy(), np.float32))
        if self.guide:
            digest.update(self.guide.digest.encode())
        return digest.hexdigest()

    def be_guided_by(self, *run_dirs: str | os.PathLike) -> None:
        """Has another run, or experts, of the process guide this one; before `denoiser` is first used."""
        guide = Model.from_folders(*run_dirs)
        changed = changes(self.config, guide.config)
        for key in SHARED_WITH_GUIDE:
            if key in changed:
                ours, theirs = changed[key]
                raise UserError(f"{guide} cannot guide {self}: {key} is {theirs} there and {ours} here")
        if guide.config.is_student:
            raise UserError(f"{guide} cannot guide {self}: it is a student, which knows few t")
        if guide.config.conditional and not self.config.conditional:
            raise UserError(f"{guide} cannot guide {self}, which has no classes to give it")
        self.guide = guide

    def use_ema_length(self, ema_length: float | None) -> None:
        """Loads averages of another length into the same variables: no new network, no new graph."""
        if "denoisers" in self.__dict__ and ema_length != self.ema_length:
            self._assign(self.denoisers, [read_weights(run, ema_length) for run in self.runs])
        self.ema_length = ema_length

    def check_ema_lengths(self, ema_lengths: Iterable[float]) -> None:
        """Raises UserError if averages of these lengths cannot be made of the snapshots; reads none."""
        for run in self.runs:
            for length in ema_lengths:
                reconstruct(run.folder, length)

    def _assign(self, denoisers: Sequence[Denoiser], weights: Sequence[tuple[Arrays, Origin]]) -> None:
        for run, denoiser, (arrays, _) in zip(self.runs, denoisers, weights):
            assign_arrays(denoiser.variables, arrays, run.folder)
        self._origin = [origin for _, origin in weights]


def models_from_folders(*run_dirs: str | os.PathLike) -> list[Model]:
    """The models of several runs: each run of the whole process is one, all others are experts of one more.

    Experts of a part of the process are one model with the run of the whole process, if there is one. One of
    smaller images than the experts' is no model beside theirs. UserError if they could be with several.
    """
    whole, experts = [], []
    levels = 0  # that experts were trained on
    for run_dir in run_dirs:
        diffusion = RunFolder(run_dir).config().diffusion
        trained = diffusion.t_stop - diffusion.t_start
        alone = trained == diffusion.num_timesteps
        (whole if alone else experts).append(run_dir)
        levels += 0 if alone else trained
    models = [Model.from_folders(run_dir) for run_dir in whole]
    if experts:
        completed = whole and levels < diffusion.num_timesteps
        if completed and len(whole) > 1:
            raise UserError(
                f"{' and '.join(map(str, whole))} cover all t: name one of them with "
                f"{' and '.join(map(str, experts))}, and compare the others in another command"
            )
        model = Model.from_folders(*experts, *(whole if completed else ()))
        shape = model.config.data.image_shape
        models = [one for one in models if not completed or one.config.data.image_shape == shape] + [model]
    titles = [model.title for model in models]
    for number, model in enumerate(models, 1):
        if titles.count(model.title) > 1:
            model.title = f"{model} ({number})"
    return models


def read_weights(run: Run, ema_length: float | None = None) -> tuple[Arrays, Origin]:
    """A run's averaged weights; no network is made.

    Their origin is the run, the step, of power-function averages the length and the misplaced part
    (`pdm_tf.averages`), and the network's t_start, t_stop, patch_size, patch_switch_t and prediction.
    """
    config = run.config
    origin = {
        "run": str(run.folder),
        "t_start": config.diffusion.t_start,
        "t_stop": config.diffusion.t_stop,
        "patch_size": config.network.patch_size,
        "prediction": config.diffusion.prediction,
    }
    if config.network.patch_switch_t:
        origin["patch_switch_t"] = config.network.patch_switch_t
    if ema_length is not None:
        average = reconstruct(run.folder, ema_length)
        about = {"step": average.step, "ema_length": ema_length, "misplaced": average.misplaced}
        return average.arrays(), {**origin, **about}
    file = run.folder.newest_weights()
    arrays = read_arrays(file)
    check_finite(arrays, file)
    return arrays, {**origin, "step": step_of(file)}


def origin_text(origin: Origin) -> str:
    text = f"{origin['run']}, step {origin['step']:,}"
    if "ema_length" in origin:
        text += f", average of length {origin['ema_length']:g} ({origin['misplaced']:.1%} misplaced)"
    return text


def _decisive(config: Config) -> dict[str, Any]:
    """The fields that decide what a network of given weights predicts, where they are not the defaults."""
    known = leaves(Config)
    used = [key for key in config.used_keys if key in PROCESS or key.startswith("network.")]
    values = {key: get(config, key) for key in sorted(used)}
    return {key: value for key, value in values.items() if value != known[key].default}


def _factor(config: Config, expert: Config) -> int:
    """The factor from the images' sides of an expert to those of a config; 1: it is not for smaller ones.

    Images averaged down are as noisy as smaller ones at each t if the schedule is shifted by the resolution.
    """
    (height, width, channels), (small_height, small_width, small_channels) = (
        one.data.image_shape for one in (config, expert)
    )
    factor = height // small_height
    alike = (height, width, channels) == (factor * small_height, factor * small_width, small_channels)
    return factor if alike and config.diffusion.schedule.startswith("shifted") else 1


def _check_alike(runs: Sequence[Run]) -> None:
    """Raises UserError if runs differ in what experts of one model share."""
    first = runs[0]
    for run in runs[1:]:
        changed = changes(first.config, run.config)
        if _factor(first.config, run.config) > 1:
            del changed["data.image_shape"]
            changed.pop("data.dataset", None)
        shared = ["data.image_shape", *SHARED]
        problems = ["{} is {} and {}".format(key, *changed[key]) for key in shared if key in changed]
        if run.config.conditional != first.config.conditional:
            problems.append("only one of them knows classes")
        if problems:
            raise UserError(f"{first.folder} and {run.folder} cannot be experts of one model: {problems[0]}")


def _without_overlaps(runs: Sequence[Run]) -> list[Run]:
    """Runs ordered by t_stop, each of which begins where the one before it stops if it was trained there."""
    cut, start = [], 0
    for run in runs:
        diffusion = run.config.diffusion
        if diffusion.t_start < start < (run.config.network.patch_switch_t or diffusion.t_stop):
            run = run._replace(config=run.config.replace({"diffusion.t_start": start}))
        cut.append(run)
        start = diffusion.t_stop
    return cut


def _check_whole(runs: Sequence[Run]) -> None:
    """Raises UserError if the intervals of runs, in their order, leave a gap, or overlap."""
    num_timesteps = runs[0].config.diffusion.num_timesteps
    starts = [run.config.diffusion.t_start for run in runs] + [num_timesteps]
    stops = [0] + [run.config.diffusion.t_stop for run in runs]
    names = [str(run.folder) for run in runs]
    for number, (stop, start) in enumerate(zip(stops, starts)):
        if start > stop:
            were = "was" if len(runs) == 1 else "were"
            raise UserError(
                f"{' and '.join(names)} {were} not trained on {stop} <= t < {start}: name the run of that "
                f"interval too, as in {','.join(names)},RUN"
            )
        if start < stop:
            raise UserError(
                f"{names[number - 1]} and {names[number]} were both trained on t = {start}: name runs whose "
                "intervals of t meet without overlapping"
            )
