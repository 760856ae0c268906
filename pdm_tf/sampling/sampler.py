"""Draws images from a denoiser: noise, guidance and sampler in one compiled graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.schedules import strided_timesteps
from pdm_tf.randomness import normal_each, stream
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.guidance import guided


class Sampler:
    """All reverse steps of a denoiser as one compiled function of (seed, indices, labels).

    Image `index` of `seed` is made from noise of its own, so it is the same image in any batch.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sections: Sequence[int] = (250,),
        guidance: float = 1.0,
        jit_compile: bool = False,
    ):
        """`sections` are the kept steps (see `strided_timesteps`), `guidance` is w of `guided`."""
        self.denoiser = denoiser
        self.guidance = guidance
        full = denoiser.schedule
        self.schedule = full.keep(strided_timesteps(len(full), sections))
        self.compiled = tf.function(self.sample, jit_compile=jit_compile)

    def sample(self, seed: tf.Tensor, indices: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """seed int32 (), indices int32 (B,), labels int32 (B,) -> float32 images (B, H, W, C) in [-1, 1]."""
        shape = self.denoiser.image_shape

        def noise(i):
            return normal_each(stream(seed, "sampling noise", i), indices, shape)

        z = normal_each(stream(seed, "sampling prior"), indices, shape)
        denoise = guided(self.denoiser, labels, self.guidance)
        return ancestral(denoise, self.schedule, z, noise)

    def __call__(self, seed: int, indices: Sequence[int], labels: Sequence[int]) -> np.ndarray:
        """Images of the given indices and labels, float32 (B, H, W, C) in [-1, 1]."""
        as_int = [tf.constant(np.asarray(values, np.int32)) for values in (seed, indices, labels)]
        return self.compiled(*as_int).numpy()


def cycled_labels(denoiser: Denoiser, count: int) -> np.ndarray:
    """Labels 0, 1, 2, ... around all classes, int32 (count,); zeros without class conditioning."""
    return np.arange(count, dtype=np.int32) % (denoiser.num_classes if denoiser.conditional else 1)


def draw(
    sampler: Sampler, seed: int, count: int, batch_size: int, labels: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws images 0..count-1 of a seed, batch by batch, with a progress bar.

    Args:
      labels: the classes to draw, in turn.
    Returns:
      float32 images (count, H, W, C) in [-1, 1] and their int32 labels (count,).
    """
    labels = np.resize(np.asarray(labels, np.int32), count)
    batch_size = min(batch_size, count)
    parts = []
    with tqdm(total=count, unit="image", desc="sample", dynamic_ncols=True) as bar:
        for start in range(0, count, batch_size):
            # Every batch is whole, so that all run the same graph; what lies beyond `count` is cut off.
            indices = np.arange(start, start + batch_size)
            images = sampler(seed, indices, labels[indices % count])
            parts.append(images[: count - start])
            bar.update(len(parts[-1]))
    return np.concatenate(parts), labels
