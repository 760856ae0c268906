"""One picture at a noise level: z_t, x_theta, x* of the data set."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.images import from_uint8, to_uint8
from pdm_tf.page import inside as inside_module
from pdm_tf.page.inside import Inside
from tests.data import fixtures
from tests.page.studios import shown, studio_of
from tests.tiny_runs import tiny_config, write_run

PICTURES = [fixtures.natural_image(n, 16, 16) for n in range(10)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten pictures of the classes 0 and 1 of three."""
    folder = tmp_path_factory.mktemp("data")
    records = [fixtures.example(fixtures.encode(picture), n % 2) for n, picture in enumerate(PICTURES)]
    return fixtures.write_shards(folder, [records], shape=(16, 16, 3), classes=3)


@pytest.fixture(scope="module")
def room(tmp_path_factory, data):
    run = write_run(tmp_path_factory.mktemp("runs") / "whole")
    return Inside(shown(studio_of(run, info=data), "whole"))


def test_the_examples_are_the_data_s_pictures(room):
    assert room.split == "train"
    found = {picture.tobytes() for picture in room.examples}
    assert found == {picture.tobytes() for picture in PICTURES}


def test_what_is_seen_is_the_process_the_network_and_the_best(room):
    t, denoiser, x = 600, room.shown.denoiser, from_uint8(PICTURES[0])[None]
    view, again = room.at(PICTURES[0], t, 1, 5), room.at(PICTURES[0], t, 1, 5)
    assert all((a == b).all() for a, b in zip(view[:3], again[:3]))
    alpha = denoiser.schedule.alpha[t]
    # The noise is the same at every t: two of them give it, and it gives a third.
    z = {t: inside_module.noisy(denoiser, x, t, 5) for t in (300, t)}
    eps = (z[300] - np.sqrt(denoiser.schedule.alpha[300]) * x) / np.sqrt(1 - denoiser.schedule.alpha[300])
    np.testing.assert_allclose(z[t], np.sqrt(alpha) * x + np.sqrt(1 - alpha) * eps, atol=1e-5)
    np.testing.assert_array_equal(view.z, to_uint8(z[t][0]))
    guess = denoiser(tf.constant(z[t]), tf.constant([t]), tf.constant([1]))[0].numpy()
    assert np.abs(view.x.astype(int) - to_uint8(guess[0])).max() <= 1
    # x* given class 1: a softmax over its five pictures.
    images = from_uint8(np.stack(PICTURES[1::2])).astype(np.float64)
    exponents = -np.square(z[t] - np.sqrt(alpha) * images).sum(axis=(1, 2, 3)) / (2 * (1 - alpha))
    weights = np.exp(exponents - exponents.max())
    best = np.tensordot(weights / weights.sum(), images, 1)
    assert np.abs(view.best.astype(int) - to_uint8(best)).max() <= 1
    assert view.said.startswith(f"t = 600: {np.sqrt(alpha):.2f} of the picture, {np.sqrt(1 - alpha):.2f} of")


def test_with_little_noise_the_best_guess_of_a_training_picture_is_that_picture(room):
    view = room.at(PICTURES[3], 0, None, 0)
    np.testing.assert_array_equal(view.best, PICTURES[3])
    assert "x* by 0.000, the mean of one training picture" in view.said
    assert "the mean of about 10 training pictures" in room.at(PICTURES[3], 999, None, 0).said


def test_a_class_without_pictures_has_no_best_guess(room):
    view = room.at(PICTURES[0], 500, 2, 0)
    assert view.best is None and "no picture of this class, so there is no x*" in view.said


def test_large_data_and_other_data_have_no_best_guess(room, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(inside_module, "SMALL", 9 * 4 * 16 * 16 * 3)
    assert Inside(room.shown).at(PICTURES[0], 500, 0, 0).best is None
    capsys.readouterr()
    run = write_run(tmp_path / "other", tiny_config(data__image_shape=(32, 16, 3)))
    other = Inside(shown(studio_of(run, info=data), "other"))
    said = capsys.readouterr().out
    assert said.startswith("note: other is shown without its data: the images of ") and said.count("\n") == 1
    assert other.examples.shape == (0, 32, 16, 3)
    view = other.at(np.zeros((32, 16, 3), np.uint8), 500, None, 0)
    assert view.best is None and "x*" not in view.said
