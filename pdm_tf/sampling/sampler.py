"""Draws images from a denoiser: noise, guidance and sampler in one compiled step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import check, options_of
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import SPACINGS, NoiseSchedule
from pdm_tf.errors import UserError
from pdm_tf.randomness import normal_each
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.ddim import ddim
from pdm_tf.sampling.dpm_solver import dpm_solver
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.guidance import guided
from pdm_tf.sampling.heun import heun
from pdm_tf.sampling.ipndm import ipndm
from pdm_tf.sampling.loop import Denoise, SamplingLoop, StepFunction, sampling_loop
from pdm_tf.sampling.repaint import repaint, resampling_indices
from pdm_tf.sampling.unipc import unipc

# name -> (denoise, schedule, *, the sampler's own options) -> StepFunction
SAMPLERS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "heun": heun,
    "dpm_solver": dpm_solver,
    "unipc": unipc,
    "ipndm": ipndm,
}


class Sampler:
    """The reverse steps of a denoiser as a function of (seed, indices, labels), one compiled step at a time.

    Image `index` of `seed` has noise streams of its own: its pixels are bit for bit the same in batches of
    one size on one machine. Between batch sizes a network's kernels sum in another order.

    A sampler made inside a strategy's scope shares each batch among the replicas.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        settings: SamplingConfig,
        edit: Edit | None = None,
        guidance: tf.Tensor | None = None,
    ):
        """Fixes everything but the noise and the labels.

        Args:
          denoiser: one of a part of the process is run on that part: from the edit's image diffused to its
            noisiest t if it cannot begin from pure noise, and up to x_theta of its cleanest.
          edit: an image to begin from, instead of pure noise.
          guidance: float32 () or (B,), known in the graph only, instead of that of the settings.
        Raises:
          UserError: settings that are not allowed, or do not go together.
        """
        check(settings, "sampling.")
        self.denoiser = denoiser
        self.settings = settings
        self.edit = edit
        self.guidance = settings.guidance if guidance is None else guidance
        self.inpaints = edit is not None and edit.mask is not None
        if self.inpaints and settings.sampler != "ancestral":
            raise UserError("a mask needs the ancestral sampler, whose steps inpainting repeats")
        # The respaced timesteps, from the least to the most noise.
        self.schedule = respaced_schedule(denoiser, settings, edit.strength if edit else 1.0)
        self.from_noise = denoiser.t_stop == len(denoiser.schedule) and (
            edit is None or (self.inpaints and edit.strength == 1.0)
        )
        if not self.from_noise and edit is None:
            raise ValueError(f"a denoiser of t < {denoiser.t_stop} cannot begin from pure noise: edit?")
        # A tensor that a graph takes from outside: as a constant in it, many images make it huge.
        self._image = tf.constant(edit.image) if edit else None
        self.num_steps = len(self.schedule)  # that sampling takes, resampling included
        self.num_passes = len(pass_timesteps(self.schedule, settings))  # of the network, without guidance
        if self.inpaints:
            if edit.resamplings > 1 and edit.jump_length >= len(self.schedule):
                raise UserError(
                    f"sections of {edit.jump_length} steps (jump_length) cannot be repeated in "
                    f"{len(self.schedule)} steps: use more steps, shorter sections, or resamplings=1"
                )
            self._visited = resampling_indices(len(self.schedule), edit.jump_length, edit.resamplings)
            self.num_steps = len(self._visited) - 1
            self.num_passes = int(np.sum(np.diff(self._visited) < 0))
        self.strategy = tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        self._compiled_begin = self._compiled(self._begin)
        self._compiled_step = self._compiled(self._step)

    def __call__(self, seed: int, indices: Sequence[int], labels: Sequence[int]) -> np.ndarray:
        """Images of the given indices and labels, float32 (B, H, W, C) in [-1, 1]."""
        return self.trajectory(seed, indices, labels, 1)[0]

    def trajectory(self, seed: int, indices: Sequence[int], labels: Sequence[int], frames: int) -> np.ndarray:
        """x_theta at `frames` evenly spaced steps, (frames, B, H, W, C); the last frame is the images.

        UserError if the images do not divide by the replicas, or there are more frames than steps.
        """
        if frames > self.num_steps:
            raise UserError(f"{frames} frames are more than the {self.num_steps} steps of this sampling")
        shown = [None] * frames
        for k, x in enumerate(self.predictions(seed, indices, labels)):
            shown[k * frames // self.num_steps] = x
        return np.stack(shown)

    def predictions(self, seed: int, indices: Sequence[int], labels: Sequence[int]) -> Iterator[np.ndarray]:
        """x_theta of each step, float32 (B, H, W, C); the last one is the images.

        Signals are heard between two steps: nothing in Python is while a graph runs. UserError if the images
        do not divide by the replicas.
        """
        if len(indices) % self.replicas:
            raise UserError(
                f"a batch of {len(indices)} samples does not divide by {self.replicas} replicas: use one of "
                f"{-(-len(indices) // self.replicas) * self.replicas}"
            )
        numbers = [tf.constant(np.asarray(values, np.int32)) for values in (seed, indices, labels)]
        state = self._compiled_begin(*numbers)
        for k in range(self.num_steps):
            pred_x, state = self._compiled_step(*numbers, tf.constant(k), state)
            shares = self.strategy.experimental_local_results(pred_x)
            yield np.concatenate([share.numpy() for share in shares])

    def sample(self, seed: tf.Tensor, indices: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """All steps in one graph, for a graph that calls it.

        seed int32 () or (B,), indices int32 (B,), labels int32 (B,) -> float32 images (B, H, W, C) in
        [-1, 1].
        """
        loop = self._loop(seed, indices, labels)
        images, _ = loop.run(loop.begin(self._first_z(seed, indices)), 0, self.num_steps)
        return images

    def _compiled(self, function: Callable) -> Callable:
        """A method (seed, indices, labels, *rest) as a graph in which each replica works on its share."""
        on_replica = tf.function(function, jit_compile=self.settings.jit_compile)

        @tf.function
        def compiled(seed, indices, labels, *rest):
            return on_replicas(self.strategy, partial(on_replica, seed), (indices, labels), rest)

        return compiled

    def _begin(self, seed, indices, labels):
        """z and the memory before the first step."""
        return self._loop(seed, indices, labels).begin(self._first_z(seed, indices))

    def _step(self, seed, indices, labels, k, state):
        """x_theta of step k, and the state after it."""
        return self._loop(seed, indices, labels).run(state, k, k + 1)

    def _first_z(self, seed, indices) -> tf.Tensor:
        """The latent that sampling begins from: pure noise, or an image diffused."""
        z = normal_each(seed, "sampling prior", indices, self.denoiser.image_shape)
        if self.from_noise:
            return z
        return diffuse(self._images(indices), z, self.schedule.at(len(self.schedule) - 1))

    def _images(self, indices) -> tf.Tensor:
        """What is edited: one image for all, or each index's own."""
        image = self._image
        return image if image.shape.rank == 3 else tf.gather(image, indices % image.shape[0])

    def _loop(self, seed, indices, labels) -> SamplingLoop:
        """The steps of some images."""
        settings = self.settings
        denoise = guided(self.denoiser, labels, self.guidance, settings.threshold, settings.guidance_interval)

        def noise(i):
            return normal_each(seed, "sampling noise", indices, self.denoiser.image_shape, i)

        if not self.inpaints:
            return sampling_loop(step_function(denoise, self.schedule, settings), self.schedule, noise)
        return repaint(
            denoise,
            self.schedule,
            noise,
            self._images(indices),
            tf.constant(self.edit.mask[..., None]),
            self._visited,
            settings.variance,
        )


def step_function(denoise: Denoise | None, schedule: NoiseSchedule, settings: SamplingConfig) -> StepFunction:
    """That of the settings' sampler, with the sampler's own options."""
    return SAMPLERS[settings.sampler](denoise, schedule, **options_of(settings, settings.sampler))


def pass_timesteps(schedule: NoiseSchedule, settings: SamplingConfig) -> np.ndarray:
    """The t of each network pass of sampling without guidance, int32 (passes,)."""
    passes = step_function(None, schedule, settings).passes
    # A step's later passes are at the timestep that it goes to: the last step, to the data, has none.
    return np.concatenate([schedule.timesteps, *[schedule.timesteps[:-1]] * (passes - 1)])


def on_replicas(
    strategy: tf.distribute.Strategy, function: Callable, batch: Sequence[tf.Tensor], rest: Sequence
) -> Any:
    """Calls `function` (*batch, *rest) on each replica, with its share (B / replicas, ...) of (B, ...)."""

    def on_one(*rest):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        replicas = strategy.num_replicas_in_sync
        shares = [tf.reshape(values, [replicas, -1, *values.shape[1:]])[replica] for values in batch]
        return function(*shares, *rest)

    return strategy.run(on_one, args=rest)


def respaced_schedule(denoiser: Denoiser, settings: SamplingConfig, strength: float = 1.0) -> NoiseSchedule:
    """The schedule at `settings.steps` of the denoiser's t, up to the last t <= strength * (T - 1)."""
    schedule = denoiser.schedule
    whole = schedule.respaced(range(denoiser.t_start, denoiser.t_stop))
    timesteps = SPACINGS[settings.spacing](whole, *settings.steps)
    timesteps = timesteps[timesteps <= strength * (len(schedule) - 1)]
    if not len(timesteps):
        raise UserError(f"a strength of {strength:g} leaves none of the steps: use more steps")
    return schedule.respaced(timesteps)


def steps_of_share(steps: Sequence[int], denoiser: Denoiser) -> tuple[int, ...]:
    """Steps of the whole process -> those for a denoiser of a part of it, at least one a section."""
    trained = denoiser.t_stop - denoiser.t_start
    share = trained / len(denoiser.schedule)
    return tuple(max(1, min(round(share * count), trained // len(steps))) for count in steps)
