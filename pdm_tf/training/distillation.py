"""Distillation: a student learns to take several of its teacher's steps in one.

Progressive (Salimans & Ho, 2022): from the teacher's steps alone; at a phase's end the student's averaged
weights become the teacher. Multistep consistency (Heek et al., 2024): from one of the teacher's steps and
the student's own step from there. What is learnt in a step follows from its number and the weights that the
run folder keeps, and so resumes to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.atomic import atomic_json
from pdm_tf.config.fields import Config, DiffusionConfig, SamplingConfig
from pdm_tf.denoiser import Denoiser, build_denoiser, build_network
from pdm_tf.devices import Workers
from pdm_tf.diffusion.losses import simple_loss
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import SPACINGS, Level, NoiseLevel, NoiseSchedule
from pdm_tf.errors import UserError
from pdm_tf.models import Model
from pdm_tf.run import run_or_shipped
from pdm_tf.sampling.guidance import guided
from pdm_tf.sampling.loop import Denoise
from pdm_tf.training.objective import Examples, Objective
from pdm_tf.training.state import State
from pdm_tf.weights import assign_arrays, read_arrays


class Teacher(NamedTuple):
    """Whose steps are learnt, guided as in its `sampling`.

    A student's x_theta is that of its own long step: no solver of second order can extrapolate from it.
    """

    denoiser: Denoiser
    sampling: SamplingConfig
    is_student: bool


class Distillation(Objective):
    """gamma_t ||x_theta - x~||^2: x~ is `target` at the student's timesteps, or `consistency_target` at all.

    A timestep is drawn as often as x counts in its step: the first, from nearly pure noise, hardly needs it.
    L_vlb is left out: the student's steps have no variance.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        diffusion: DiffusionConfig,
        teacher: Teacher,
        steps: NoiseSchedule,
        factor: int,
        consistency: bool = False,
    ):
        super().__init__(denoiser, diffusion)
        self.steps = steps  # the teacher's timesteps
        self.factor = factor  # how many of its steps one of the student is
        self.consistency = consistency
        self._teacher = teacher
        index = np.arange(len(steps))
        alpha_end = steps.alpha_before[self._cleanest(index)]
        noise_left = np.sqrt((1.0 - alpha_end) / (1.0 - steps.alpha))
        mass = np.sqrt(alpha_end) - noise_left * np.sqrt(steps.alpha)
        begins = index % factor == factor - 1
        self._mass = np.zeros(len(denoiser.schedule))
        self._mass[steps.timesteps] = mass if consistency else mass * begins
        for part in denoiser.parts:
            if not self._mass[part.t_start : part.t_stop].any():
                raise UserError(
                    f"none of the student's {begins.sum()} steps is of {part.title}: use more, or a teacher "
                    "of one patch size"
                )

    def losses(self, examples: Examples, dropout_key: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """As `Objective.losses`; "mse" is that to the target."""
        denoiser, x, labels, t, eps, augmentation, weight, _ = examples
        i = tf.searchsorted(self.steps.timesteps, t)
        level = self.steps.at(i, x.dtype)
        z = diffuse(x, eps, level)
        sampling = self._teacher.sampling
        teacher = guided(
            self._teacher.denoiser, labels, sampling.guidance, sampling.threshold, sampling.guidance_interval
        )
        if self.consistency:
            student = guided(self.denoiser, labels, weight=1.0, threshold="static")
            end = self.steps.at(self._cleanest(i), x.dtype).before
            following = self.steps.at(tf.maximum(i - 1, 0), x.dtype)
            aim = consistency_target(teacher, student, z, level, following, end)
        else:
            levels = [level, *(self.steps.at(i - k, x.dtype) for k in range(1, self.factor))]
            aim = target(teacher, z, levels, self._teacher.is_student)
        aim = tf.stop_gradient(aim)
        pred_x, _ = denoiser(z, t, labels, dropout_key, augmentation)
        diffusion = self.diffusion
        simple = simple_loss(aim, pred_x, level, diffusion.loss_weighting, diffusion.loss_bias)
        return {
            "loss": weight * simple,
            "simple_loss": weight * simple,
            "vlb_loss": tf.zeros_like(simple),
            "mse": tf.reduce_mean(tf.square(pred_x - aim), axis=[1, 2, 3]),
            "t": t,
        }

    def _cleanest(self, i):
        """The index of the teacher's last step within the student's step that has its i-th."""
        return i // self.factor * self.factor


def target(teacher: Denoise, z: tf.Tensor, levels: Sequence[NoiseLevel], first_order: bool) -> tf.Tensor:
    """The x~ from which one DDIM step ends where the teacher's steps, one from each of `levels`, do.

    A step z_s = r z_t + w d, r = noise_s / noise_t, w = signal_s - r signal_t, is DDIM's at d = x_theta, and
    that of DPM-Solver++(2M) at an extrapolated one; the first, and one to the data, are the same in both.
    One after another they add up to Z = R z + D, and W is what D is at d = 1: so a DDIM step at x~ = D / W
    ends at Z. For two DDIM steps this is Algorithm 2 of Salimans & Ho (2022), without its cancellation.

    Args:
      z: z_t, (B, H, W, C).
      levels: those of t and of the timesteps that the teacher comes by.
      first_order: DDIM's steps; False: DPM-Solver++'s.
    """
    total = tf.zeros_like(z)
    weights = tf.zeros_like(levels[0].signal)
    d = x_before = h_before = None
    for level in levels:
        ratio, weight = _step(level, level.before)
        x, _ = teacher(z, level.t)
        h = 0.5 * tf.math.log(level.before.snr / level.snr)
        d = x
        if x_before is not None and not first_order:
            d += tf.where(level.before.noise > 0, 0.5 * h / h_before, 0.0) * (x - x_before)
        z = ratio * z + weight * d
        total = ratio * total + weight * d
        weights = ratio * weights + weight
        x_before = x
        h_before = h
    return total / weights


def consistency_target(
    teacher: Denoise, student: Denoise, z: tf.Tensor, level: NoiseLevel, following: NoiseLevel, end: Level
) -> tf.Tensor:
    """The x~ from which one DDIM step to `end` ends where the teacher's step and the student's from there do.

    Where the student is perfect at `following` it is `target` of all of the teacher's DDIM steps to `end`.

    Args:
      z: z_t, (B, H, W, C).
      level, following, end: those of t, of the teacher's next timestep, and of where the student's step ends;
        if the teacher's does, too, x~ is its x_theta, and `following` does not count.
    """
    x, _ = teacher(z, level.t)
    ratio, weight = _step(level, level.before)
    x_following, _ = student(ratio * z + weight * x, following.t)
    ratio, weight_following = _step(following, end)
    weight = ratio * weight
    both = (weight * x + weight_following * x_following) / (weight + weight_following)
    return tf.where(level.before.noise == end.noise, x, both)


def _step(level: Level, before: Level) -> tuple[tf.Tensor, tf.Tensor]:
    """r and w of a DDIM step z_s = r z_t + w x."""
    ratio = before.noise / level.noise
    return ratio, before.signal - ratio * level.signal


def teacher_schedule(config: Config, process: NoiseSchedule, step: int) -> NoiseSchedule:
    """The teacher's timesteps in the phase of the train step after `step` of them.

    UserError if those of the student are not among them.
    """
    distillation = config.distillation
    spacing = SPACINGS[distillation.spacing]
    count = distillation.teacher_steps(step)
    factor = distillation.factor
    timesteps = spacing(process, count)
    if not np.array_equal(timesteps[factor - 1 :: factor], spacing(process, count // factor)):
        raise UserError(
            f"distillation.first={distillation.first}: the process is too coarse at its least noise for "
            f"{count} steps, of which {count // factor} are kept; use fewer"
        )
    return process.respaced(timesteps)


class Teaching:
    """Gives a model the teacher of each phase."""

    def __init__(self, config: Config, state: State, strategy: tf.distribute.Strategy, chief: bool):
        self.config = config
        self.state = state
        self.strategy = strategy
        self.chief = chief
        self._begin_phase(state.step)

    def next_phase(self, step: int) -> None:
        """Makes the student's averages its teacher if `step` is a phase's end."""
        if self.config.distillation.phase(step) != self.config.distillation.phase(step - 1):
            if self.chief:
                self.state.ema.save(self.state.checkpoints.run.teacher(step))
            Workers(self.strategy).wait()  # for the file
            self._begin_phase(step)

    def _begin_phase(self, step: int) -> None:
        """Sets the objective of the phase of the train step after `step` of them."""
        model = self.state.model
        with self.strategy.scope():
            teacher = self._teacher(step)
        steps = teacher_schedule(self.config, model.denoiser.schedule, step)
        factor = self.config.distillation.factor
        consistency = self.config.distillation.method == "consistency"
        model.objective = Distillation(model.denoiser, model.diffusion, teacher, steps, factor, consistency)
        # Keras keeps graphs, which have the teacher before in them.
        model.train_function = None
        model.test_function = None
        print(f"distillation: {len(steps)} steps of the teacher -> {len(steps) // factor}", flush=True)

    def _check_same(self, teacher: Model) -> None:
        """Notes at the run's start who its first teacher is; UserError if that is another now."""
        note = self.state.checkpoints.run.teacher_note
        sampling = teacher.config.sampling
        guidance = [sampling.guidance, sampling.threshold, *sampling.guidance_interval]
        now = {"digest": teacher.digest, "guidance": guidance}
        if not self.state.step:
            if self.chief:
                atomic_json(note, now)
        elif note.exists() and json.loads(note.read_text()) != now:
            raise UserError(
                f"the teacher {teacher} has other weights or guidance than when this run began: restore "
                "those, or train in another folder"
            )

    def _teacher(self, step: int) -> Teacher:
        """That of the phase of the train step after `step` of them."""
        distillation = self.config.distillation
        phase = distillation.phase(step)
        if not phase:
            model = Model.from_folders(*[run_or_shipped(name).path for name in distillation.teacher])
            self._check_same(model)
            return Teacher(model.denoiser, model.config.sampling, model.config.is_student)
        file = self.state.checkpoints.run.teacher(phase * distillation.phase_steps)
        denoiser = build_denoiser(self.config.diffusion, build_network(self.config))
        assign_arrays(denoiser.variables, read_arrays(file), file)
        return Teacher(denoiser, self.config.sampling, is_student=True)
