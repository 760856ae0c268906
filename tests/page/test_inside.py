"""One picture at a noise level: z_t, x_theta, x* of the data set."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.images import from_uint8, to_uint8
from pdm_tf.page import inside as inside_module
from pdm_tf.page.inside import Inside
from tests.data import fixtures
from tests.page.studios import studio_of
from tests.tiny_runs import tiny_config, write_run

PICTURES = [fixtures.natural_image(n, 16, 16) for n in range(10)]


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    """Ten pictures of the classes 0 and 1 of three."""
    folder = tmp_path_factory.mktemp("data")
    records = [fixtures.example(fixtures.encode(picture), n % 2) for n, picture in enumerate(PICTURES)]
    return fixtures.write_shards(folder, [records], shape=(16, 16, 3), classes=3)


@pytest.fixture(scope="module")
def room(tmp_path_factory, info):
    run = write_run(tmp_path_factory.mktemp("runs") / "whole")
    return Inside(studio_of(run).models[0], info)


def test_the_examples_are_the_data_s_pictures(room):
    assert room.split == "train"
    assert {picture.tobytes() for picture in room.examples} == {picture.tobytes() for picture in PICTURES}


def test_the_process_the_network_and_the_best_prediction(room):
    t = 600
    denoiser = room.model.denoiser
    alpha = denoiser.schedule.alpha
    x = from_uint8(PICTURES[0])[None]
    view = room.at(PICTURES[0], t, 1, 5)
    again = room.at(PICTURES[0], t, 1, 5)
    assert all((a == b).all() for a, b in zip(view[:3], again[:3]))
    # At little noise z_t is nearly the picture; at any t it is that picture and noise of unit variance.
    np.testing.assert_allclose(room.at(PICTURES[0], 0, 1, 5).z.astype(int), PICTURES[0], atol=8)
    z = inside_module.add_noise(denoiser, x, t, 5)
    np.testing.assert_array_equal(view.z, to_uint8(z[0]))
    eps = (z - np.sqrt(alpha[t]) * x) / np.sqrt(1 - alpha[t])
    assert abs(eps.std() - 1) < 0.1
    guess = denoiser(tf.constant(z), tf.constant([t]), tf.constant([1]))[0].numpy()
    assert np.abs(view.x.astype(int) - to_uint8(guess[0])).max() <= 1
    # x* given class 1: a softmax over its five pictures.
    images = from_uint8(np.stack(PICTURES[1::2])).astype(np.float64)
    exponents = -np.square(z - np.sqrt(alpha[t]) * images).sum(axis=(1, 2, 3)) / (2 * (1 - alpha[t]))
    weights = np.exp(exponents - exponents.max())
    best = np.tensordot(weights / weights.sum(), images, 1)
    assert np.abs(view.best.astype(int) - to_uint8(best)).max() <= 1
    signal, noise = np.sqrt(alpha[t]), np.sqrt(1 - alpha[t])
    assert view.status.startswith(f"t = 600: z_t = {signal:.2f} x picture + {noise:.2f} x noise; ")
    assert "student" not in view.status


def test_a_student_says_which_t_it_knows(tmp_path):
    student = {"distillation__teacher": ("a",), "distillation__steps": 2, "distillation__first": 4}
    sampled = {"sampling__sampler": "ddim", "sampling__steps": (2,), "sampling__spacing": "trailing"}
    spaced = {"distillation__spacing": "trailing", "diffusion__label_dropout": 0.0}
    run = write_run(tmp_path / "student", tiny_config(**student, **sampled, **spaced))
    status = Inside(studio_of(run).models[0], None).at(PICTURES[0], 600, 1, 5).status
    assert "this student knows no other t than 499, 999" in status


def test_a_class_without_pictures_large_data_and_other_data_have_no_best_guess(
    room, info, tmp_path, monkeypatch, capsys
):
    view = room.at(PICTURES[0], 500, 2, 0)
    assert view.best is None and "no picture of this class, so there is no x*" in view.status
    monkeypatch.setattr(inside_module, "SMALL", 9 * 4 * 16 * 16 * 3)
    assert Inside(room.model, info).at(PICTURES[0], 500, 0, 0).best is None
    capsys.readouterr()
    run = write_run(tmp_path / "other", tiny_config(data__image_shape=(32, 16, 3)))
    other = Inside(studio_of(run).models[0], info)
    output = capsys.readouterr().out
    assert (
        output.startswith("note: other is shown without its data: the images of ") and output.count("\n") == 1
    )
    assert other.examples.shape == (0, 32, 16, 3)
    assert other.at(np.zeros((32, 16, 3), np.uint8), 500, None, 0).best is None
