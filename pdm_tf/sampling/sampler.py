"""Draws images from a denoiser: noise, guidance and sampler in one compiled graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import check, options_of
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import NoiseSchedule, logsnr_timesteps, strided_timesteps
from pdm_tf.errors import UserError
from pdm_tf.randomness import normal_of_seeds
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.ddim import ddim
from pdm_tf.sampling.dpm_solver import dpm_solver
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.guidance import guided
from pdm_tf.sampling.ipndm import ipndm
from pdm_tf.sampling.loop import Walk, descend
from pdm_tf.sampling.repaint import repaint, resampling_walk
from pdm_tf.sampling.unipc import unipc

# name -> (denoise, schedule, *, the options that are of it) -> Steps
SAMPLERS = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "unipc": unipc,
    "ipndm": ipndm,
}
# A call of the graph is to take about so long: nothing in Python is heard meanwhile, a signal least of all.
CALL_SECONDS = 1.0


class Sampler:
    """The reverse steps of a denoiser as a compiled function of (seed, indices, labels).

    One graph takes as many of the steps at a time as last about a second. How they are cut changes no bit.

    Image `index` of `seed` is made from noise streams of its own, whatever batch it is in. Its pixels are
    bit for bit the same in batches of one size on one machine; between batch sizes the last bits of a
    network's floats may differ, because its kernels sum in another order.

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
          denoiser: what to sample from. One that answers for a part of the process only is run on that part:
            from the edit's image diffused to its noisiest t if it cannot begin from pure noise, and up to
            x_theta of its cleanest.
          settings: how.
          edit: an image to begin from, instead of pure noise.
          guidance: float32 () or (B,), known in the graph only, instead of that of the settings.
        Raises:
          UserError: settings that are not allowed, or do not go together.
        """
        check(settings, "sampling.")
        if edit and edit.mask is not None and settings.sampler != "ancestral":
            raise UserError("a mask needs the ancestral sampler, whose steps inpainting repeats")
        self.denoiser, self.settings, self.edit = denoiser, settings, edit
        self.guidance = settings.guidance if guidance is None else guidance
        image, mask = (edit.image, edit.mask) if edit else (None, None)
        strength = edit.strength if edit else 1.0
        self.schedule = kept_steps(denoiser, settings, strength)
        self.from_noise = denoiser.t_stop == len(denoiser.schedule) and (
            image is None or (mask is not None and strength == 1.0)
        )
        if not self.from_noise and image is None:
            raise ValueError(f"a denoiser of t < {denoiser.t_stop} cannot begin from pure noise: image?")
        # A tensor that a graph takes from outside: as a constant in it, many images make it huge.
        self.image, self.mask = None if image is None else tf.constant(image), mask
        self.strategy = tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        on_replica = {"jit_compile": settings.jit_compile}
        self._begin_on_replica = tf.function(self._begin, **on_replica)
        self._part_on_replica = tf.function(self._part, **on_replica)
        self._compiled_begin = tf.function(self._begin_on_replicas)
        self._compiled_part = tf.function(self._part_on_replicas)
        # Moves of the next call, and the shape that they were measured at.
        self._together, self._measured_at = 1, None
        self.seconds_per_image = None

    @property
    def moves(self) -> int:
        """How many steps sampling takes, resampling included."""
        steps = len(self.schedule)
        if self.mask is None:
            return steps
        return len(resampling_walk(steps, self.edit.jump_length, self.edit.resamplings)) - 1

    def __call__(
        self,
        seed: int,
        indices: Sequence[int],
        labels: Sequence[int],
        report: Callable[[int], None] = lambda moves: None,
    ) -> np.ndarray:
        """Images of the given indices and labels, float32 (B, H, W, C) in [-1, 1]; `report` as below."""
        return self.trajectory(seed, indices, labels, 1, report)[0]

    def trajectory(
        self,
        seed: int,
        indices: Sequence[int],
        labels: Sequence[int],
        frames: int,
        report: Callable[[int], None] = lambda moves: None,
    ) -> np.ndarray:
        """x_theta at `frames` evenly spaced steps on the way to the images, which are the last frame.

        Args:
          report: called about every second with how many of the `moves` are done; what it raises ends the
            drawing.
        Returns:
          float32 (frames, B, H, W, C).
        Raises:
          UserError: the images do not divide by the replicas, or there are more frames than steps.
        """
        for done, at in self._parts(seed, indices, labels, frames, CALL_SECONDS):
            report(done)
            shown = at[0]
        return self._joined(shown)

    def sharpening(
        self, seed: int, indices: Sequence[int], labels: Sequence[int], seconds: float
    ) -> Iterator[tuple[int, np.ndarray]]:
        """x_theta on the way to the images, bit for bit those of a call; the last one is the images.

        Args:
          seconds: about how much time passes between two of them, but a step at least.
        Yields:
          How many of the `moves` are done, and x_theta, float32 (B, H, W, C).
        Raises:
          UserError: the images do not divide by the replicas.
        """
        for done, at in self._parts(seed, indices, labels, 1, seconds):
            yield done, self._joined(at[0])[0]

    def _parts(self, seed, indices, labels, frames: int, seconds: float) -> Iterator[tuple[int, list]]:
        """Takes all moves, as many at a time as last about so many seconds, and tells after each time."""
        if len(indices) % self.replicas:
            raise UserError(
                f"a batch of {len(indices)} samples does not divide by {self.replicas} replicas: use one of "
                f"{-(-len(indices) // self.replicas) * self.replicas}"
            )
        if frames > self.moves:
            raise UserError(f"{frames} frames are more than the {self.moves} steps of this sampling")
        numbers = [tf.constant(np.asarray(values, np.int32)) for values in (seed, indices, labels)]
        at, done = self._compiled_begin(*numbers, frames), 0
        if self._measured_at != (len(indices), frames):
            self._together, self._measured_at = 1, (len(indices), frames)
        while done < self.moves:
            end = min(done + self._together, self.moves)
            at = self._timed_part(numbers, done, end, at, seconds)
            done = end
            yield done, at

    def sample(self, seed: tf.Tensor, indices: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """All steps in one graph, for a graph that calls it.

        seed int32 () or (B,), indices int32 (B,), labels int32 (B,) -> float32 images (B, H, W, C) in
        [-1, 1].
        """
        return self._walk(seed, indices, labels).run()[0]

    def _timed_part(
        self, numbers: Sequence[tf.Tensor], begin: int, end: int, at: list, seconds: float
    ) -> list:
        """Takes some of the moves, and decides from their time how many come next."""
        before = time.monotonic()
        mark, at = self._compiled_part(*numbers, tf.constant(begin), tf.constant(end), at)
        mark.numpy()  # waits for the device
        each = (time.monotonic() - before) / (end - begin)
        self.seconds_per_image = each * self.moves / self._measured_at[0]
        # Growing step by step: the first call was traced, and caches and clocks warm up.
        self._together = max(1, min(int(seconds / each), 4 * (end - begin)))
        return at

    def _local(self, values) -> tuple[tf.Tensor, ...]:
        return self.strategy.experimental_local_results(values)

    def _joined(self, frames) -> np.ndarray:
        """The replicas' shares of frames, as one (frames, B, H, W, C)."""
        return np.concatenate([share.numpy() for share in self._local(frames)], axis=1)

    def _begin_on_replicas(self, seed, indices, labels, frames):
        """`_begin`, each replica on its share of the images."""

        def own():
            shares = (own_share(values, self.replicas) for values in (indices, labels))
            return self._begin_on_replica(seed, *shares, frames)

        return self.strategy.run(own)

    def _part_on_replicas(self, seed, indices, labels, begin, end, at):
        """`_part`, each replica on its share, and a number that is there once all are done."""

        def own(at):
            shares = (own_share(values, self.replicas) for values in (indices, labels))
            return self._part_on_replica(seed, *shares, begin, end, at)

        at = self.strategy.run(own, args=(at,))
        return tf.add_n([z[0, 0, 0, 0] for z in self._local(at[1])]), at

    def _begin(self, seed, indices, labels, frames):
        return self._walk(seed, indices, labels).begin(frames)

    def _part(self, seed, indices, labels, begin, end, at):
        return self._walk(seed, indices, labels).part(begin, end, at)

    def _walk(self, seed, indices, labels) -> Walk:
        """The moves of some images, with the noise that they begin from."""
        shape, settings = self.denoiser.image_shape, self.settings
        denoise = guided(self.denoiser, labels, self.guidance)
        seeds = tf.broadcast_to(seed, tf.shape(indices))
        z = normal_of_seeds(seeds, "sampling prior", indices, shape)
        image = self.image
        if image is not None and image.shape.rank == 4:
            image = tf.gather(image, indices % image.shape[0])
        if not self.from_noise:
            z = diffuse(image, z, self.schedule.at(len(self.schedule) - 1))

        def noise(i):
            return normal_of_seeds(seeds, "sampling noise", indices, shape, i)

        if self.mask is not None:
            return repaint(
                denoise, self.schedule, z, noise, image, tf.constant(self.mask[..., None]),
                variance=settings.variance, jump_length=self.edit.jump_length,
                resamplings=self.edit.resamplings,
            )  # fmt: skip
        sampler = SAMPLERS[settings.sampler]
        steps = sampler(denoise, self.schedule, **options_of(settings, settings.sampler))
        return descend(steps, self.schedule, z, noise)


def own_share(values: tf.Tensor, replicas: int) -> tf.Tensor:
    """A replica's part of a batch (B, ...): (B / replicas, ...)."""
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.reshape(values, [replicas, -1, *values.shape[1:]])[replica]


def kept_steps(denoiser: Denoiser, settings: SamplingConfig, strength: float = 1.0) -> NoiseSchedule:
    """The strided schedule of the denoiser's own t, up to the last kept t <= strength * (T - 1)."""
    schedule = denoiser.schedule
    own = schedule.keep(range(denoiser.t_start, denoiser.t_stop))
    if settings.spacing == "logsnr":
        (count,) = settings.steps
        kept = logsnr_timesteps(own, count)
    else:
        kept = own.timesteps[strided_timesteps(len(own), settings.steps)]
    kept = kept[kept <= strength * (len(schedule) - 1)]
    if not len(kept):
        raise UserError(f"a strength of {strength:g} leaves none of the steps: use more steps")
    return schedule.keep(kept)


def steps_of_share(steps: Sequence[int], denoiser: Denoiser) -> tuple[int, ...]:
    """Steps of the whole process -> those for a denoiser of a part of it, at least one a section."""
    share = (denoiser.t_stop - denoiser.t_start) / len(denoiser.schedule)
    return tuple(max(1, round(share * count)) for count in steps)
