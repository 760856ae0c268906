"""Models of the page, for tests."""

from __future__ import annotations

from pathlib import Path

from pdm_tf.data import DatasetInfo
from pdm_tf.models import models_from_folders
from pdm_tf.page.studio import Shown, Studio
from tests.tiny_runs import tiny_config, write_run


def write_runs(folder: Path, **settings) -> Path:
    """A whole model, two experts of one, one without classes and a grey one that is not square."""
    write_run(folder / "whole", tiny_config(**settings))
    write_run(folder / "low", tiny_config(diffusion__t_stop=400, network__patch_size=2, **settings), 1)
    write_run(folder / "high", tiny_config(diffusion__t_start=400, network__patch_size=8, **settings), 2)
    write_run(folder / "plain", tiny_config(network__class_conditioning="none", **settings), 3)
    write_run(folder / "grey", tiny_config(data__image_shape=(16, 24, 1), **settings), 4)
    return folder


def studio_of(*run_dirs: Path, info: DatasetInfo | None = None) -> Studio:
    """As --mode=page makes it."""
    models = models_from_folders(*run_dirs)
    return Studio(models, [info] * len(models))


def shown(studio: Studio, name: str) -> Shown:
    return next(one for one in studio.sights if one.name == name)
