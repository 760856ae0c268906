"""Students of few steps: the target in closed form, the levels, learning, and resuming in each phase."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf import data
from pdm_tf.config import presets
from pdm_tf.config.fields import check_sampling, parse_settings, validate
from pdm_tf.diffusion.schedules import SPACINGS, linear
from pdm_tf.errors import UserError
from pdm_tf.models import Model
from pdm_tf.run import RunFolder
from pdm_tf.sampling.ddim import ddim
from pdm_tf.sampling.dpm_solver import dpm_solver
from pdm_tf.sampling.loop import sampling_loop
from pdm_tf.sampling.sampler import respaced_schedule
from pdm_tf.training import loop
from pdm_tf.training.distillation import consistency_target, target
from pdm_tf.weights import read_arrays, write_arrays
from tests.sampling.mixture import Mixture, normal, unlabelled
from tests.tiny_runs import write_run

pytestmark = pytest.mark.timeout(3000)
PROCESS = linear()
MIXTURE = Mixture([0.3, 0.7], [[-0.6, 0.2], [0.5, 0.4]], [0.02 * np.eye(2), 0.05 * np.eye(2)])


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize(("first_order", "sampler"), [(True, ddim), (False, dpm_solver)])
@pytest.mark.parametrize("k", [0, 2, 3])
def test_a_perfect_student_s_step_ends_where_the_teacher_s_steps_do(factor, first_order, sampler, k):
    """The k-th of four steps, from the cleanest; the teacher is the exact denoiser of a mixture."""
    steps = PROCESS.respaced(SPACINGS["logsnr_trailing"](PROCESS, 4 * factor))
    student = PROCESS.respaced(SPACINGS["logsnr_trailing"](PROCESS, 4))
    teacher = unlabelled(MIXTURE.denoiser(PROCESS))
    z = normal((64, 1, 1, 2), k)
    last = (k + 1) * factor - 1
    levels = [steps.at(last - j, z.dtype) for j in range(factor)]
    aim = target(teacher, z, levels, first_order)

    part = dataclasses.replace(steps, timesteps=steps.timesteps[: last + 1], alpha=steps.alpha[: last + 1])
    loop = sampling_loop(sampler(teacher, part), part, None)
    x, (expected, *_) = loop.run(loop.begin(z), 0, factor)
    if k == 0:
        expected = x  # the step to the data ends at x_theta
    perfect = ddim(lambda z, t: (aim, None), student).step
    row = tf.constant(ddim(None, student).table[k], z.dtype)
    _, found, _ = perfect(student.at(k, z.dtype), z, None, tf.unstack(row), [])
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("i", [8, 9, 10, 11])
def test_a_student_that_is_consistent_takes_all_of_the_teacher_s_steps(i):
    """The third of four steps; the student at the next timestep is perfect."""
    steps = PROCESS.respaced(SPACINGS["logsnr_trailing"](PROCESS, 16))
    teacher = unlabelled(MIXTURE.denoiser(PROCESS))
    z = normal((64, 1, 1, 2), i)

    def rest_from(j):
        levels = [steps.at(k, z.dtype) for k in range(j, 7, -1)]
        return lambda z, _: (target(teacher, z, levels, first_order=True), None)

    student = rest_from(i - 1) if i > 8 else lambda z, _: (np.nan * z, None)  # which is not asked
    levels = steps.at(i, z.dtype), steps.at(i - 1, z.dtype), steps.at(8, z.dtype).before
    found = consistency_target(teacher, student, z, *levels)
    np.testing.assert_allclose(found, rest_from(i)(z, None)[0], rtol=1e-9, atol=1e-9)


TEACHER = [
    "network.base_channels=32", "network.channel_multipliers=1", "network.attention_resolutions=",
    "network.head_channels=32", "network.blocks_per_level=1", "optimizer.learning_rate=1e-3",
    "sampling.guidance=2",
]  # fmt: skip
STUDENT = [
    "distillation.first=8", "distillation.steps=2", "distillation.phase_steps=6", "training.steps=12",
    "training.batch_size=8", "training.log_every=1", "training.eval_every=100", "training.ema_every=2",
    "training.checkpoint_every=4", "training.sample_every=100", "training.sample_images=2",
    "training.score_every=0", "training.precision=float32", "optimizer.warmup_steps=0",
]  # fmt: skip
INFO = data.find_dataset("emoji64", "")
LAST = [
    "ema/step_00000012.npz",
    "checkpoints/step_00000012/state.data-00000-of-00001",
    "teacher/step_00000006.npz",
    "previews/step_00000012.png",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run folder of wild weights, sampled with guidance."""
    config = validate(presets.preset("emoji64").replace(parse_settings(TEACHER)))
    return write_run(tmp_path_factory.mktemp("teacher"), config)


def student_config(teacher, *settings):
    given = parse_settings([f"distillation.teacher={teacher}", *STUDENT, *settings])
    return validate(presets.student(RunFolder(teacher).config(), given).replace(given))


def train(teacher, folder, *settings):
    loop.train(student_config(teacher, *settings), RunFolder(folder), INFO, tf.distribute.get_strategy())


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    """A run of both phases, 8 to 4 and 4 to 2 steps."""
    folder = tmp_path_factory.mktemp("student")
    train(teacher, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("method", "left"), [("progressive", 0.5), ("consistency", 0.7)])
def test_a_student_comes_nearer_to_its_teacher_s_steps(teacher, tmp_path, method, left):
    train(teacher, tmp_path, f"distillation.method={method}", "distillation.steps=4", "training.steps=40")
    losses = RunFolder(tmp_path).metrics()["loss"][:, 1]
    assert losses[-5:].mean() < left * losses[:5].mean()


@pytest.mark.slow
def test_a_student_that_is_resumed_in_each_phase_comes_to_the_same_bits(teacher, student, tmp_path):
    for end in (4, 6, 8):  # within the first phase, at its end, within the second
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.TimeLimit, "over", property(lambda self, end=end: Steps.done >= end))
            patch.setattr(loop.TimeLimit, "describe", lambda self, shown: Steps.note(shown))
            train(teacher, tmp_path)
        assert RunFolder(tmp_path).checkpoint_steps()[-1] == end
        if end == 4:
            refuses_another_teacher(teacher, tmp_path)
    train(teacher, tmp_path)
    for name in LAST:
        assert (tmp_path / name).read_bytes() == (student / name).read_bytes(), name


def refuses_another_teacher(teacher, folder):
    """Trains against a teacher that has learnt on since."""
    weights = RunFolder(teacher).newest_weights()
    before = weights.read_bytes()
    write_arrays(weights, {name: 2 * array for name, array in read_arrays(weights).items()})
    with pytest.raises(UserError, match="has other weights or guidance than when this run began"):
        train(teacher, folder)
    weights.write_bytes(before)


class Steps:
    """The number of steps that the loop has done."""

    done = 0

    @classmethod
    def note(cls, shown):
        cls.done = shown.n + 1


def test_a_student_is_sampled_at_the_timesteps_that_it_has_learnt(student):
    model = Model.from_folders(student)
    schedule = respaced_schedule(model.denoiser, model.config.sampling)
    assert model.config.sampling.steps == (2,)
    np.testing.assert_array_equal(schedule.timesteps, [302, 999])


@pytest.mark.parametrize(
    "asked",
    [
        {"sampling.steps": (4,)},
        {"sampling.sampler": "unipc"},
        {"sampling.spacing": "even"},
        {"sampling.guidance": 2.0},
    ],
)
def test_a_student_is_sampled_in_no_other_way(teacher, asked):
    config = student_config(teacher)
    check_sampling(config)
    with pytest.raises(UserError, match=r"made for sampling\.sampler=ddim sampling\.steps=2 "):
        check_sampling(config.replace(asked))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distillation.first=6", "distillation.first=6: use steps times factor, once or more, such as 8"),
        ("training.steps=6", "ends before the last of 2 phases"),
        ("distillation.method=consistency", "has one phase: use distillation.factor=4"),
        ("diffusion.t_start=3", "a student learns all of the process"),
    ],
)
def test_what_a_student_cannot_be_trained_with(teacher, setting, message):
    with pytest.raises(UserError, match=message):
        student_config(teacher, setting)


def test_a_student_of_a_student_begins_at_its_steps(student):
    config = presets.student(RunFolder(student).config(), {"distillation.teacher": (str(student),)})
    assert (config.distillation.first, config.distillation.steps, config.sampling.steps) == (2, 1, (1,))
    given = {"distillation.teacher": (str(student),), "distillation.first": 16}
    with pytest.raises(UserError, match="is a student itself, of 2 steps"):
        presets.student(RunFolder(student).config(), given)
