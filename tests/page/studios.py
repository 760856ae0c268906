"""Models of the page, for tests."""

from __future__ import annotations

from pathlib import Path

from pdm_tf.data import DatasetInfo
from pdm_tf.models import Model, models_from_folders
from pdm_tf.page.studio import Studio
from tests.tiny_runs import tiny_config, write_run


def write_runs(folder: Path, **settings) -> Path:
    """A whole model, two experts of one, and a grey one without classes that is not square."""
    write_run(folder / "whole", tiny_config(**settings))
    write_run(folder / "low", tiny_config(diffusion__t_stop=400, network__patch_size=2, **settings), 1)
    write_run(folder / "high", tiny_config(diffusion__t_start=400, network__patch_size=8, **settings), 2)
    grey = {"network__class_conditioning": "none", "data__image_shape": (16, 24, 1)}
    write_run(folder / "grey", tiny_config(**grey, **settings), 3)
    return folder


def studio_of(*run_dirs: Path, info: DatasetInfo | None = None) -> Studio:
    """As --mode=page makes it."""
    models = models_from_folders(*run_dirs)
    return Studio(models, [info] * len(models))


def model_of(studio: Studio, title: str) -> Model:
    return next(model for model in studio.comparable if model.title == title)
