"""The distance that the table of samplers is made of."""

import numpy as np

from benchmarks.samplers import Distance, features, mmd2, read_split


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
