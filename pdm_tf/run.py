"""A run folder: what lies where in it, and who may write."""

from __future__ import annotations

import json
import os
import re
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from pdm_tf.atomic import atomic_text, sole_writer
from pdm_tf.config.fields import Config
from pdm_tf.config.resolve import Given
from pdm_tf.errors import UserError, one_line
from pdm_tf.paths import as_path, entries

# Run folders that ship with the project, by data set: what is sampled before anything has been trained.
PRETRAINED = Path(__file__).parent / "pretrained"
# Of these data sets they are experts.
EXPERTS = {"avatars256": ("avatars256", "avatars256/low"), "avatars1024": ("avatars1024", "avatars256")}

SAFETENSORS = ".safetensors"  # the ending of weights for other frameworks, as an export writes them


class RunFolder:
    """config.json, checkpoints/, ema/, logs/, previews/ and samples/. Nobody else writes these names."""

    def __init__(self, path: str | os.PathLike):
        """`path`: as `as_path` takes it, with its errors; the folder need not be there."""
        self.path = as_path(path)
        # All that rebuilds the run's networks, and how its owner likes them sampled.
        self.config_file = self.path / "config.json"
        # What the command that began the run said of its config.
        self.given_file = self.path / "given.json"
        # TensorBoard's files, and beside them its scalars, one JSON object a line, and the loss curve.
        self.logs = self.path / "logs"
        self.metrics_file = self.logs / "metrics.jsonl"
        self.loss_curve = self.logs / "loss.png"
        # The averages of the best score, if they are kept (`training.keep_best`), and how it was measured.
        self.best_weights = self.path / "ema" / "best.npz"
        self.best_note = self.path / "ema" / "best.json"
        self.evaluation = self.path / "evaluation"
        # What a student's first teacher was when the run began.
        self.teacher_note = self.path / "teacher" / "first.json"

    def __str__(self) -> str:
        return str(self.path)

    def checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / _name(step)

    def partial_checkpoint(self, step: int) -> Path:
        """The temporary folder of a checkpoint until it is whole."""
        return self.path / "checkpoints" / f".{_name(step)}.partial"

    def weights(self, step: int, form: str = ".npz") -> Path:
        """The averaged weights of a step; `form`: .npz as training writes them, or `SAFETENSORS`."""
        return self.path / "ema" / f"{_name(step)}{form}"

    def snapshot(self, length: float, step: int) -> Path:
        """The power-function average of a length (`training.ema_lengths`) at a step."""
        return self.path / "ema" / f"length_{length}" / f"{_name(step)}.npz"

    def snapshot_steps(self, length: float) -> list[int]:
        """The steps with a snapshot of that length's average, ascending."""
        return _steps(self.path / "ema" / f"length_{length}", r"step_(\d+)\.npz")

    def teacher(self, step: int) -> Path:
        """The student's averages at a step, from which on it is its own teacher."""
        return self.path / "teacher" / f"{_name(step)}.npz"

    def preview(self, step: int) -> Path:
        """The grid of samples that training draws at a step."""
        return self.path / "previews" / f"{_name(step)}.png"

    def checkpoint_steps(self) -> list[int]:
        """The steps of the checkpoints, whole or damaged, ascending."""
        return _steps(self.path / "checkpoints", r"step_(\d+)")

    def partial_steps(self) -> list[int]:
        """The steps of the checkpoints that a killed process left unfinished."""
        return _steps(self.path / "checkpoints", r"\.step_(\d+)\.partial")

    def newest_weights(self) -> Path:
        """The newest averaged weights; UserError if there are none yet."""
        for form in (".npz", SAFETENSORS):  # no run has both: training writes one, an export the other
            steps = _steps(self.path / "ema", rf"step_(\d+)\{form}")
            if steps:
                return self.weights(steps[-1], form)
        raise UserError(f"{self.path}/ema holds no weights yet: train until the first checkpoint is written")

    def has_config(self) -> bool:
        """Whether there is a run."""
        return self.config_file.exists()

    def has_begun(self) -> bool:
        """Whether training in the folder has left weights: a run that failed before may begin otherwise."""
        return bool(self.checkpoint_steps() or _steps(self.path / "ema", r"step_(\d+)\.(?:npz|safetensors)"))

    def config(self) -> Config:
        """Reads config.json; UserError if there is none, or it is not valid."""
        if not self.has_config():
            raise UserError(f"{self.path} holds no run (no config.json): train one there first")
        return Config.from_json(self.config_file.read_bytes(), str(self.config_file))

    def write_config(self, config: Config, given: Given | None = None) -> None:
        """Writes config.json and, of a run that begins, what it was resolved from."""
        if given and not self.has_begun():
            atomic_text(self.given_file, given.to_json())
        atomic_text(self.config_file, config.to_json())

    def given(self) -> Given | None:
        """What the command that began the run said of it; None where that is not known."""
        if not self.given_file.exists():
            return None
        try:
            return Given.from_json(self.given_file.read_bytes())
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.given_file} is damaged: remove it ({one_line(error)})") from error

    def metrics(self) -> dict[str, np.ndarray]:
        """The scalars so far: name -> (n, 2) float64 of step and value, ascending by step.

        Of steps that a resumed run has gone over again the later values count; damaged lines do not.
        """
        series: dict[str, dict[int, float]] = {}
        data = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
        for line in data.splitlines():
            values = _scalars(line)
            step = values.pop("step", None)
            for name, value in values.items() if step is not None else ():
                series.setdefault(name, {})[step] = value
        return {name: np.array(sorted(points.items()), np.float64) for name, points in series.items()}

    def sole_writer(self) -> AbstractContextManager[None]:
        """Holds the folder's lock; UserError if another process has it."""
        busy = f"another process trains in {self.path}: wait for it, or use another folder"
        return sole_writer(self.path, busy)


def training_seconds(metrics: dict[str, np.ndarray], batch_size: int) -> float:
    """How long a run has trained at the median speed of its metrics (`RunFolder.metrics`); 0 without any.

    The median, since a machine that was suspended or busy with other work has not trained meanwhile.
    """
    if "images_per_second" not in metrics:
        return 0.0
    steps, speeds = metrics["images_per_second"].T
    return float(steps[-1] * batch_size / np.median(speeds))


def _scalars(line: bytes) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl."""
    try:
        values = json.loads(line)
        return {name: float(value) for name, value in values.items() if type(value) in (int, float)}
    except (ValueError, AttributeError, OverflowError, RecursionError):
        return {}


def step_of(file: Path) -> int:
    """The step of a file of `RunFolder.weights` or `RunFolder.snapshot`."""
    return int(file.stem.removeprefix("step_"))


def run_or_shipped(text: str) -> RunFolder:
    """The run folder of a path, or of the name of weights that ship, as avatars64; UserError if neither."""
    for run in (RunFolder(text), RunFolder(PRETRAINED / text)):
        if run.has_config():
            return run
    names = sorted(folder.name for folder in PRETRAINED.iterdir() if RunFolder(folder).has_config())
    raise UserError(f"{text} holds no run (no config.json); weights that ship are {', '.join(names)}")


def shipped_folders(dataset: str) -> list[Path]:
    """The folders of the weights that ship for a data set: of one run, of experts, or none."""
    folders = (PRETRAINED / name for name in EXPERTS.get(dataset, (dataset,)))
    return [folder for folder in folders if RunFolder(folder).has_config()]


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _steps(folder: Path, pattern: str) -> list[int]:
    """The numbers in the names of a folder's entries that fit a pattern, ascending."""
    found = (re.fullmatch(pattern, entry.name) for entry in entries(folder))
    return sorted(int(number[1]) for number in found if number)
