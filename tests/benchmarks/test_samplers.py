"""The table of samplers: the distance that it is made of, and what is measured."""

import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.samplers import Distance, features, main, measure, mmd2, read_split, settings_of
from flags.errors import UserError, run
from tests.fakes import FakeDenoiser
from tests.tiny_runs import tiny_config


def test_mmd_is_unbiased_and_grows_with_the_difference():
    generator = np.random.default_rng(0)

    def draws(mean):
        return [
            mmd2(generator.standard_normal((60, 8)) + mean, generator.standard_normal((90, 8)))
            for _ in range(200)
        ]

    same, near, far = draws(0.0), draws(0.3), draws(0.6)
    # The mean of 200 estimates of 0 lies within four standard errors of it.
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(200)
    assert 5 * np.std(same) / np.sqrt(200) < np.mean(near) < 0.5 * np.mean(far)


def test_the_distance_tells_data_from_damaged_data():
    train, labels = read_split("emoji64", "data", "train", (64, 64, 3))
    held_out, _ = read_split("emoji64", "data", "validation", (64, 64, 3))
    assert len(train) == len(labels) and train.min() >= -1 and train.max() <= 1
    distance = Distance(train[:400])
    floor = distance(held_out)
    noise = np.random.default_rng(0).normal(size=held_out.shape).astype(np.float32)
    damaged = {
        "noisy": held_out + 0.2 * noise,
        "dark": held_out - 0.2,
        "one class": train[400:][labels[400:] == 2],
        "shifted": np.roll(held_out, 16, axis=2),
    }
    for name, images in damaged.items():
        assert distance(images) > 3 * abs(floor), (name, distance(images), floor)


def test_features_do_not_depend_on_the_batch():
    images = np.random.default_rng(0).uniform(-1, 1, (5, 16, 16, 3)).astype(np.float32)
    np.testing.assert_allclose(features(images, 2), features(images, 5), rtol=1e-4, atol=1e-5)


def test_samples_of_each_seed_are_measured_with_their_own_labels():
    """A denoiser that paints each image in the grey of its label, and their mean as the "distance"."""
    denoiser = FakeDenoiser(lambda z, t, labels: 0 * z + tf.cast(labels, z.dtype)[:, None, None, None] / 4)
    labels = np.array([0, 1, 2, 0, 1], np.int32)
    settings = settings_of("unipc/logsnr", 3, 1.0, tiny_config())
    line = measure(denoiser, settings, labels, lambda images: float(images.mean()), 2, seeds=2)
    np.testing.assert_allclose(line["distances"], [labels.mean() / 4] * 2, atol=1 / 127)
    assert line["spread"] < 1e-6 and line["seconds_per_image"] > 0 and line["num_images"] == 5
    assert (line["sampler"], line["spacing"], line["steps"]) == ("unipc", "logsnr", (3,))


@pytest.mark.parametrize("name", ["euler", "ddim/cosine"])
def test_a_row_that_cannot_be_sampled_is_refused(name):
    with pytest.raises(UserError, match="use one of"):
        settings_of(name, 5, 1.0, tiny_config())


def test_without_a_run_the_program_ends_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["samplers", f"--run_dir={tmp_path}"])
    assert run(main) == 2
    assert "holds no run" in capsys.readouterr().err
