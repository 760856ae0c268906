"""`Sampler`: seeds, batches, XLA, schedules, experts and editing, on small random networks."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import options_of
from pdm_tf.denoiser import SplitDenoiser
from pdm_tf.diffusion.schedules import linear
from pdm_tf.errors import UserError
from pdm_tf.images import from_uint8, to_uint8
from pdm_tf.randomness import normal_each
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.guidance import guided
from pdm_tf.sampling.loop import sampling_loop
from pdm_tf.sampling.repaint import repaint, resampling_indices
from pdm_tf.sampling.sampler import SAMPLERS, Sampler, steps_of_share
from tests.fakes import FakeDenoiser
from tests.tiny_runs import tiny_config, tiny_denoiser


def easy_denoiser(t_start=0, t_stop=1000):
    """One without weights that is quick to trace: x is near z / sqrt(alpha) and knows the label."""
    schedule = linear()

    def answer(z, t, labels):
        share = 1.0 + 0.01 * tf.cast(labels, tf.float32)[:, None, None, None]
        x = share / schedule.at(t).signal * z
        return x, tf.clip_by_value(x, 0.0, 1.0)

    return FakeDenoiser(answer, schedule, t_start=t_start, t_stop=t_stop)


def sampler_of(denoiser, image=None, mask=None, strength=1.0, jump_length=10, resamplings=10, **settings):
    """Of a whole process, unless `strength` says how much of one to run on an image."""
    edit = None if image is None else Edit(image, mask, strength, jump_length, resamplings)
    return Sampler(denoiser, SamplingConfig(**settings), edit)


@pytest.fixture
def easy():
    return easy_denoiser()


@pytest.fixture(scope="module")
def denoiser():
    return tiny_denoiser()


def test_an_image_depends_on_its_seed_index_and_label_and_not_on_its_batch(denoiser):
    sampler = sampler_of(denoiser, steps=(4,))
    together = sampler(5, [0, 1, 2, 3], [0, 1, 2, 0])
    elsewhere = sampler(5, [9, 3, 0, 0], [2, 0, 0, 1])
    np.testing.assert_array_equal(elsewhere[[1, 2]], together[[3, 0]])
    assert np.abs(elsewhere[3] - together[0]).max() > 1e-3 and np.abs(together[3] - together[0]).max() > 0.1
    assert np.abs(sampler(6, [0, 1, 2, 3], [0, 1, 2, 0]) - together).max() > 0.1


@pytest.mark.parametrize("name", ["unipc", "repaint"])
def test_xla_computes_the_same_from_the_same_noise(easy, name):
    # XLA's random numbers are its own, so these are a table.
    z, noises = np.random.default_rng(0).standard_normal((2, 12, 2, 16, 16, 3)).astype(np.float32)
    noises, schedule = tf.constant(noises), easy.schedule.respaced([0, 100, 500, 999])
    unknown = tf.constant(z[0, 0, :, :, :1] > 0)

    def run(z):
        denoise = guided(easy, tf.constant([0, 2]), 2.0)
        if name == "repaint":
            known, visited = tf.ones((16, 16, 3)), resampling_indices(4, 2, 2)
            loop = repaint(denoise, schedule, lambda i: noises[i % 12], known, unknown, visited, "learned")
        else:
            loop = sampling_loop(SAMPLERS[name](denoise, schedule), schedule, lambda i: noises[i])
        return loop.run(loop.begin(z), 0, loop.num_steps)[0]

    plain, compiled = (tf.function(run, jit_compile=jit)(tf.constant(z[0])) for jit in (False, True))
    np.testing.assert_allclose(compiled, plain, atol=1e-4)


def test_a_trajectory_ends_at_the_images(easy):
    sampler = sampler_of(easy, steps=(4,))
    every = sampler.trajectory(5, [0, 1], [0, 1], 4)
    assert every.shape == (4, 2, 16, 16, 3) and len({frame.tobytes() for frame in every}) == 4
    np.testing.assert_array_equal(sampler.trajectory(5, [0, 1], [0, 1], 2), every[1::2])
    np.testing.assert_array_equal(sampler(5, [0, 1], [0, 1]), every[-1])
    with pytest.raises(UserError, match="5 frames are more than the 4 steps"):
        sampler.trajectory(5, [0, 1], [0, 1], 5)


def timesteps(denoiser, **settings):
    return sampler_of(denoiser, **settings).schedule.timesteps.tolist()


def test_the_respaced_timesteps(easy):
    assert timesteps(easy, steps=(5,)) == [0, 250, 500, 749, 999]
    assert timesteps(easy, steps=(2, 1)) == [0, 499, 999]
    assert timesteps(easy, steps=(3,), spacing="logsnr") == [0, 302, 999]
    # Of a part of the process its own.
    images = np.zeros((3, 16, 16, 3), np.float32)
    assert timesteps(easy_denoiser(500, 1000), steps=(3,)) == [500, 750, 999]
    assert timesteps(easy_denoiser(200, 400), steps=(2, 1), image=images) == [200, 299, 399]
    assert timesteps(easy_denoiser(0, 400), steps=(2,), spacing="logsnr", image=images) == [0, 399]
    with pytest.raises(ValueError, match="t < 400 cannot begin from pure noise"):
        sampler_of(easy_denoiser(0, 400), steps=(3,))
    assert steps_of_share((250,), easy_denoiser(0, 400)) == (100,)
    assert steps_of_share((90, 2), easy_denoiser(0, 100)) == (9, 1)


def test_each_index_begins_at_its_own_image():
    images = np.stack([np.full((16, 16, 3), value, np.float32) for value in (-0.5, 0.0, 0.5)])
    sampler = sampler_of(easy_denoiser(0, 50), sampler="dpm_solver", steps=(5,), image=images)
    drawn = sampler(0, [2, 0], [0, 0])
    np.testing.assert_allclose(drawn.mean(axis=(1, 2, 3)), [0.5, -0.5], atol=0.03)


def test_strength_cuts_the_schedule(easy):
    image = np.zeros((16, 16, 3), np.float32)
    assert timesteps(easy, steps=(5,), image=image, strength=0.6) == [0, 250, 500]
    assert timesteps(easy, steps=(5,), image=image, strength=0.0) == [0]
    assert timesteps(easy, steps=(5,), image=image, strength=1.0)[-1] == 999
    with pytest.raises(UserError, match=r"a strength of 0.9 leaves none of the steps: use more steps"):
        sampler_of(easy, steps=(1,), image=image, strength=0.9)


OTHER = {"variance": "small", "eta": 0.5, "order": 3}


@pytest.mark.parametrize("name", ["ancestral", "ddim", "unipc"])
def test_an_option_of_a_sampler_changes_its_images(easy, name):
    images = sampler_of(easy, sampler=name, steps=(5,))(5, [0, 1], [0, 1])
    for key in options_of(SamplingConfig(), name):
        other = sampler_of(easy, sampler=name, steps=(5,), **{key: OTHER[key]})
        assert np.abs(other(5, [0, 1], [0, 1]) - images).max() > 1e-4, key


def test_the_known_pixels_come_back_as_the_same_bytes(easy):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (16, 16, 3), np.uint8)
    image.reshape(-1)[:256] = np.arange(256)
    mask = generator.random((16, 16)) < 0.5
    for strength in (0.5, 1.0):
        sampler = sampler_of(
            easy, steps=(6,), image=from_uint8(image), strength=strength, mask=mask,
            jump_length=2, resamplings=2,
        )  # fmt: skip
        painted = to_uint8(sampler(0, [0, 1], [0, 1]))
        np.testing.assert_array_equal(painted[:, ~mask], np.stack([image[~mask]] * 2))
        assert (painted[0, mask] != image[mask]).mean() > 0.9
        assert (painted[0, mask] != painted[1, mask]).mean() > 0.5


def test_experts_of_one_network_draw_what_that_network_draws(easy):
    experts = SplitDenoiser([easy_denoiser(0, 500), easy_denoiser(500, 1000)])
    for settings in ({"sampler": "dpm_solver"}, {"guidance": 2.0}):
        single, split = (sampler_of(d, steps=(4,), **settings)(5, [0, 1], [0, 1]) for d in (easy, experts))
        np.testing.assert_allclose(split, single, atol=1e-5)


def test_experts_of_different_patch_sizes_draw_together():
    fine = tiny_denoiser(tiny_config(diffusion__t_stop=500))
    settings = {"network__patch_size": 8, "diffusion__prediction": "v", "diffusion__t_start": 500}
    coarse = tiny_denoiser(tiny_config(**settings), 1)
    sampler = sampler_of(SplitDenoiser([fine, coarse]), steps=(2,), sampler="dpm_solver")
    first, last = sampler.trajectory(5, [0, 1], [0, 1], 2)
    z = normal_each(5, "sampling prior", tf.constant([0, 1]), (16, 16, 3))
    for frame, expert, t in ((first, coarse, 999), (last, fine, 0)):
        pred_x = tf.clip_by_value(expert(z, tf.constant([t, t]), tf.constant([0, 1]))[0], -1, 1)
        np.testing.assert_allclose(frame, pred_x, atol=1e-4)
        z = ddim_step_to_0(z, pred_x, fine.schedule)


def ddim_step_to_0(z, pred_x, schedule):
    here, there = schedule.at(999), schedule.at(0)
    return there.signal * pred_x + there.noise * (z - here.signal * pred_x) / here.noise


IMAGE = np.random.default_rng(1).uniform(-1, 1, (16, 16, 3)).astype(np.float32)
CASES = {
    "unipc": {"sampler": "unipc"},
    "guided heun": {"sampler": "heun", "guidance": 2.0},
    "an image for each": {"image": np.stack([IMAGE, -IMAGE]), "sampler": "ddim", "eta": 0.5, "strength": 0.7},
    "repaint": {"image": IMAGE, "mask": IMAGE[..., 0] > 0, "jump_length": 2, "resamplings": 2},
}
FAST = ("guided heun", "repaint")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in CASES]
)
def test_step_by_step_the_bytes_are_those_of_one_graph(denoiser, name):
    sampler = sampler_of(denoiser, steps=(4,), **CASES[name])
    numbers = tf.constant(5), tf.constant([0, 1]), tf.constant([2, 0])
    whole = tf.function(sampler.sample)(*numbers)
    np.testing.assert_array_equal(sampler(5, [0, 1], [2, 0]), whole)


def test_steps_and_passes_are_counted(easy):
    counts = {name: sampler_of(easy, sampler=name, steps=(5,)) for name in SAMPLERS}
    assert {name: (one.num_steps, one.num_passes) for name, one in counts.items()} == {
        **dict.fromkeys(SAMPLERS, (5, 5)),
        "heun": (5, 9),
    }
    edit = {"image": IMAGE, "mask": IMAGE[..., 0] > 0, "jump_length": 2, "resamplings": 2}
    with pytest.raises(UserError, match="cannot be repeated in 2 steps"):
        sampler_of(easy, steps=(2,), **edit)
    inpainting = sampler_of(easy, steps=(5,), **edit)
    assert (inpainting.num_steps, inpainting.num_passes) == (13, 9)
