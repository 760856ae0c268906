"""A small data set of two classes, and models with any denoiser, trained on it by their configs."""

from __future__ import annotations

from pathlib import Path

from pdm_tf.analysis.study import Study
from pdm_tf.models import Model, Run
from pdm_tf.run import RunFolder
from tests.data import fixtures
from tests.tiny_runs import tiny_config

COUNT = 12


def small_data(folder: Path):
    """Twelve images of 16 x 16 pixels, of two classes in turn."""
    images = [fixtures.encode(fixtures.natural_image(n, 16, 16)) for n in range(COUNT)]
    records = [fixtures.example(image, n % 2) for n, image in enumerate(images)]
    return fixtures.write_shards(folder, [records], shape=(16, 16, 3), classes=2)


def model_of(denoiser, folder: Path, **settings) -> Model:
    """A model with a given denoiser."""
    config = tiny_config(**{"data__num_classes": 2, "data__label_names": ("a", "b"), **settings})
    model = Model([Run(RunFolder(folder), config)])
    model.__dict__.update(denoiser=denoiser, denoisers=[denoiser])  # in place of the networks
    return model


def study_of(info, *models: Model, count: int = 6, **options) -> Study:
    """A study of models."""
    return Study(models, info, seed=0, count=count, batch_size=4, **options)
