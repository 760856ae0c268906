"""Patch borders in samples."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.analysis import grids
from tests.analysis.studies import model_of, study_of
from tests.fakes import FakeDenoiser


def test_energy_at_borders():
    noise = np.random.default_rng(0).normal(size=(20, 32, 32, 3))
    for patch_size in (2, 4, 8):
        assert grids.border_energy(noise, patch_size) == pytest.approx(1, abs=0.05)
    # Patches that know nothing of each other, smooth inside: the borders stand out, where they are alone.
    blocks = np.kron(noise[:, :8, :8], np.ones((1, 4, 4, 1))) + 0.01 * noise
    assert grids.border_energy(blocks, 4) > 1000
    assert grids.border_energy(blocks[:, 1:, 1:], 4) < 0.01
    assert grids.border_energy(noise, 1) is None and grids.border_energy(noise, 32) is None
    assert grids.border_energy(np.zeros((1, 8, 8, 3)), 4) is None


def test_steps_at_borders_are_seen_where_energy_is_blind():
    """An offset of 6.4 of 255 on each patch of pictures of lines on plain ground."""
    rng = np.random.default_rng(0)
    images = np.full((64, 64, 64, 3), rng.normal(size=(64, 1, 1, 3)) / 2)
    for image in images:
        for place in rng.integers(64, size=3):
            image[place : place + 3] = image[:, place : place + 3] = -1.0
    offsets = np.kron(rng.choice([-0.05, 0.05], size=(64, 8, 8, 3)) / 2, np.ones((1, 8, 8, 1)))
    value, error = grids.border_steps(images, 8)
    assert abs(value - 1) < 3 * error < 0.5
    stepped, stepped_error = grids.border_steps(images + offsets, 8)
    assert stepped - 1 > 5 * stepped_error
    assert grids.border_energy(images + offsets, 8) < 1.1 * grids.border_energy(images, 8)
    assert grids.border_steps(images, 2) is None and grids.border_steps(0 * images, 8) is None


def test_one_seed_draws_one_noise_for_all_models(info, tmp_path):
    def blocky(z, t, labels):
        return tf.repeat(tf.repeat(tf.nn.avg_pool2d(z, 4, 4, "VALID"), 4, axis=1), 4, axis=2)

    settings = {"sampling__steps": (3,), "sampling__sampler": "ddim"}
    plain = FakeDenoiser(lambda z, t, labels: 0.5 * z, num_classes=2)
    models = [
        model_of(plain, tmp_path / "a", **settings),
        model_of(FakeDenoiser(blocky, num_classes=2), tmp_path / "b", **settings),
        model_of(plain, tmp_path / "c", network__patch_size=8, **settings),
    ]
    result = grids.measure(study_of(info, *models, count=6))
    a, b, c = (result.numbers["border_energy"][name] for name in list(result.images)[2::2])
    assert [row["patch_size"] for row in (a, b, c)] == [4, 4, 8] and a["data"] == b["data"] != c["data"]
    assert b["samples"] is None and a["samples"] == pytest.approx(1, abs=0.2)  # nothing within blocks
    np.testing.assert_array_equal(result.images["x, P=4, a (1)"], result.images["x, P=8"])
    assert "x, P=8 (data" in result.sentence and "b (2)" not in result.sentence
    result.draw(tmp_path / "grids.png")
