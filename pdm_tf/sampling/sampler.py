"""Draws images from a denoiser: noise, guidance and sampler in one compiled graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from flags.errors import UserError
from pdm_tf.denoiser import Denoiser, Experts
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import NoiseSchedule, logsnr_timesteps, strided_timesteps
from pdm_tf.randomness import normal_each, stream
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.ddim import ddim
from pdm_tf.sampling.dpm_solver import dpm_solver
from pdm_tf.sampling.guidance import guided
from pdm_tf.sampling.repaint import repaint, resampling_walk


class Sampler:
    """All reverse steps of a denoiser as one compiled function of (seed, indices, labels).

    Image `index` of `seed` is made from noise streams of its own, whatever batch it is in. Its pixels are
    bit for bit the same in batches of one size on one machine; between batch sizes the last bits of a
    network's floats may differ, because its kernels sum in another order.

    A sampler made inside a strategy's scope shares each batch among the replicas.
    """

    def __init__(
        self,
        denoiser: Denoiser | Experts,
        *,
        sampler: str = "ancestral",
        sections: Sequence[int] = (250,),
        spacing: str = "even",
        variance: str = "learned",
        eta: float = 0.0,
        guidance: float | tf.Tensor = 1.0,
        init_image: np.ndarray | None = None,
        strength: float = 1.0,
        mask: np.ndarray | None = None,
        jump_length: int = 10,
        resamplings: int = 10,
        jit_compile: bool = False,
    ):
        """Fixes everything but the noise and the labels.

        Args:
          denoiser: what to sample from. One that answers for a part of the process only is run on that part:
            from `init_image` diffused to its noisiest t if it cannot begin from pure noise, and up to x_theta
            of its cleanest.
          sampler: "ancestral", "ddim" or "dpm_solver".
          sections: the kept steps; see `strided_timesteps`.
          spacing: "even" in t, or "logsnr", which has one section (see `logsnr_timesteps`).
          variance: of ancestral steps; see `log_variance`.
          eta: of DDIM.
          guidance: w of `guided`.
          init_image: float32 (H, W, C) in [-1, 1], what to edit; or (N, H, W, C), one for each index.
          strength: how much of the process to run on `init_image`, 0 to 1: sampling starts at the last kept
            t <= strength * (T - 1), from the image diffused to it (SDEdit, Meng et al., 2022); at 1 and with
            a mask from pure noise.
          mask: bool (H, W), True where to paint anew; the rest of `init_image` stays as it is.
          jump_length, resamplings: of `repaint`, for a mask.
          jit_compile: compile with XLA, whose random numbers, and so the images of a seed, are others.
        Raises:
          UserError: settings that do not go together.
        """
        if sampler not in ("ancestral", "ddim", "dpm_solver"):
            raise ValueError(f"sampler={sampler!r}: use ancestral, ddim or dpm_solver")
        self.denoiser = denoiser
        self.schedule = _kept_steps(denoiser, sections, spacing, strength)
        self.from_noise = denoiser.t_stop == len(denoiser.schedule) and (
            init_image is None or (mask is not None and strength == 1.0)
        )
        if not self.from_noise and init_image is None:
            raise ValueError(f"a denoiser of t < {denoiser.t_stop} cannot begin from pure noise: init_image?")
        if mask is not None and (sampler != "ancestral" or init_image is None):
            raise UserError("--mask needs an --init_image and --sampler=ancestral, whose steps it resamples")
        self.sampler, self.variance, self.eta, self.guidance = sampler, variance, eta, guidance
        # A tensor that a graph takes from outside: as a constant in it, many images make it huge.
        self.init_image = None if init_image is None else tf.constant(init_image)
        self.strength, self.mask = strength, mask
        self.jump_length, self.resamplings = jump_length, resamplings
        self.jit_compile = jit_compile
        self.strategy = tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        self._on_replica = tf.function(self._frames, jit_compile=jit_compile)
        self._compiled = tf.function(self._on_replicas)

    @property
    def moves(self) -> int:
        """How many steps sampling takes, resampling included."""
        steps = len(self.schedule)
        if self.mask is None:
            return steps
        return len(resampling_walk(steps, self.jump_length, self.resamplings)) - 1

    def __call__(self, seed: int, indices: Sequence[int], labels: Sequence[int]) -> np.ndarray:
        """Images of the given indices and labels, float32 (B, H, W, C) in [-1, 1]."""
        return self.trajectory(seed, indices, labels, 1)[0]

    def trajectory(self, seed: int, indices: Sequence[int], labels: Sequence[int], frames: int) -> np.ndarray:
        """x_theta at `frames` evenly spaced steps on the way to the images, which are the last frame.

        Returns:
          float32 (frames, B, H, W, C).
        Raises:
          UserError: the images do not divide by the replicas, or there are more frames than steps.
        """
        if len(indices) % self.replicas:
            raise UserError(
                f"a batch of {len(indices)} samples does not divide by {self.replicas} replicas: use "
                f"--sample_batch_size={-(-len(indices) // self.replicas) * self.replicas}"
            )
        if frames > self.moves:
            raise UserError(f"{frames} frames are more than the {self.moves} steps of this sampling")
        as_int = [tf.constant(np.asarray(values, np.int32)) for values in (seed, indices, labels)]
        return self._compiled(*as_int, frames).numpy()

    def sample(self, seed: tf.Tensor, indices: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """seed int32 (), indices int32 (B,), labels int32 (B,) -> float32 images (B, H, W, C) in [-1, 1]."""
        return self._frames(seed, indices, labels, 1)[0]

    def _on_replicas(self, seed, indices, labels, frames):
        """`_frames`, each replica on its share of the images."""

        def own_share():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            own = [tf.reshape(values, [self.replicas, -1])[replica] for values in (indices, labels)]
            return self._on_replica(seed, *own, frames)

        return tf.concat(self.strategy.experimental_local_results(self.strategy.run(own_share)), axis=1)

    def _frames(self, seed, indices, labels, frames):
        """x_theta at `frames` steps, (frames, B, H, W, C): everything from the noise to the images."""
        shape = self.denoiser.image_shape
        denoise = guided(self.denoiser, labels, self.guidance)
        z = normal_each(stream(seed, "sampling prior"), indices, shape)
        image = self.init_image
        if image is not None and image.shape.rank == 4:
            image = tf.gather(image, indices)
        if not self.from_noise:
            z = diffuse(image, z, self.schedule, tf.constant(len(self.schedule) - 1))

        def noise(i):
            return normal_each(stream(seed, "sampling noise", i), indices, shape)

        if self.mask is not None:
            return repaint(
                denoise, self.schedule, z, noise, image,
                tf.constant(self.mask[..., None]), self.variance, self.jump_length, self.resamplings, frames,
            )  # fmt: skip
        if self.sampler == "ancestral":
            return ancestral(denoise, self.schedule, z, noise, self.variance, frames)
        if self.sampler == "ddim":
            return ddim(denoise, self.schedule, z, noise, self.eta, frames)
        return dpm_solver(denoise, self.schedule, z, frames)


def _kept_steps(
    denoiser: Denoiser | Experts, sections: Sequence[int], spacing: str, strength: float
) -> NoiseSchedule:
    """The strided schedule of the denoiser's own t, up to the last kept t <= strength * (T - 1)."""
    schedule = denoiser.schedule
    own = schedule.keep(range(denoiser.t_start, denoiser.t_stop))
    if spacing == "logsnr":
        (count,) = sections
        kept = logsnr_timesteps(own, count)
    elif spacing == "even":
        kept = own.timesteps[strided_timesteps(len(own), sections)]
    else:
        raise ValueError(f"spacing={spacing!r}: use even or logsnr")
    kept = kept[kept <= strength * (len(schedule) - 1)]
    if not len(kept):
        raise UserError(f"--strength={strength:g} leaves none of the steps: use more --steps")
    return schedule.keep(kept)


def cycled_labels(denoiser: Denoiser | Experts, count: int) -> np.ndarray:
    """Labels 0, 1, 2, ... around all classes, int32 (count,); zeros without class conditioning."""
    return np.arange(count, dtype=np.int32) % (denoiser.num_classes if denoiser.conditional else 1)
