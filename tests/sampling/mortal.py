"""A sampler that dies, as a killed process would, and what it draws."""

from __future__ import annotations

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.sampler import Sampler
from tests.sampling.test_sampler import easy_denoiser

MODEL = "0" * 64  # a digest


class Killed(Exception):
    pass


class Mortal(Sampler):
    """Dies in the place of its `dies_at`-th batch, and notes the indices of each that it draws."""

    def __init__(self, dies_at=None, denoiser=None, edit=None, **settings):
        settings = SamplingConfig(**{"steps": (3,), **settings})
        super().__init__(denoiser or easy_denoiser(), settings, edit)
        self.drawn, self.dies_at = [], dies_at

    def predictions(self, seed, indices, labels):
        if len(self.drawn) == self.dies_at:
            raise Killed
        self.drawn.append(list(indices))
        return super().predictions(seed, indices, labels)


def draw_of(dies_at=None, seed=3, count=11, batch_size=4, labels=(0, 2), **settings):
    """11 images in batches of 4 of `Mortal`."""
    return SampleBatches(Mortal(dies_at, **settings), seed, count, batch_size, list(labels))
