"""Images of files and draws as a detector's features: going on after a kill, labels, places."""

import dataclasses

import numpy as np
import pytest

from pdm_tf.errors import UserError
from pdm_tf.evaluation.features import Detector, extract
from pdm_tf.evaluation.subjects import of_draw, of_path, shared_labels, take
from pdm_tf.images import write_samples
from pdm_tf.ledger import Share
from tests.sampling.mortal import Killed, draw_of


def looks(images):
    """A detector of pooled and spatial features: some pixels."""
    pixels = images.astype(np.float32).reshape(len(images), -1)
    return pixels[:, :5], pixels[:, 5:12], None


LABELS = {"frechet": "FD-looks", "kernel": "KD-looks"}


def detector(sha256="0" * 64):
    """It looks at 8 images at a time: two batches of `draw_of`."""
    return Detector("looks", sha256, "none", LABELS, looks, batch_size=8)


def kept(folder):
    return sorted(path.name for path in folder.glob(".unfinished-*/*_*.np?"))


def test_features_of_a_draw_are_those_of_its_images(tmp_path):
    subject, images = of_draw(detector(), draw_of(), tmp_path, "run", {"seed": 3}), list(draw_of().batches())
    for found, expected in zip(subject.features, extract(detector(), images)):
        np.testing.assert_array_equal(found, expected)
    assert len(subject.features.pooled) == 11 and subject.image_shape == (16, 16, 3)
    np.testing.assert_array_equal(subject.take([9, 0, 10, 4, 9]), np.concatenate(images)[[9, 0, 10, 4, 9]])
    # No image is kept: 11 of them are two parts.
    assert kept(tmp_path) == ["0000000000000000_00000000.npz", "0000000000000000_00000008.npz"]
    subject.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_killed_evaluation_draws_no_image_twice(tmp_path, dies_at):
    whole = of_draw(detector(), draw_of(), tmp_path / "whole", "run", {}).features
    with pytest.raises(Killed):
        of_draw(detector(), draw_of(dies_at), tmp_path / "killed", "run", {})
    again = draw_of()
    features = of_draw(detector(), again, tmp_path / "killed", "run", {}).features
    assert [indices[0] for indices in again.sampler.drawn] == [0, 4, 8][dies_at:]
    np.testing.assert_array_equal(features.pooled, whole.pooled)
    np.testing.assert_array_equal(features.spatial, whole.spatial)


def test_workers_share_the_parts_and_the_first_one_has_all(tmp_path):
    alone = of_draw(detector(), draw_of(count=27), tmp_path / "alone", "run", {})
    first, second = (dataclasses.replace(draw_of(count=27), share=Share(n, 2)) for n in range(2))
    assert of_draw(detector(), second, tmp_path / "both", "run", {}) is None
    together = of_draw(detector(), first, tmp_path / "both", "run", {})
    # Of the parts, two batches each: the second one drew the second and the last.
    assert [indices[0] for indices in second.sampler.drawn] == [8, 12, 24]
    assert [indices[0] for indices in first.sampler.drawn] == [0, 4, 16, 20]
    for found, expected in zip(together.features, alone.features):
        np.testing.assert_array_equal(found, expected)


def test_another_detector_or_command_never_mixes_in(tmp_path):
    of_draw(detector(), draw_of(), tmp_path, "run", {})
    for other, seed in ((detector("1" * 64), 3), (detector(), 4)):
        again = draw_of(seed=seed)
        of_draw(other, again, tmp_path, "run", {})
        assert len(again.sampler.drawn) == 3


def test_a_damaged_part_is_named(tmp_path):
    of_draw(detector(), draw_of(), tmp_path, "run", {})
    (damaged,) = tmp_path.glob(".unfinished-*/*_00000008.npz")
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"_00000008\.npz is damaged"):
        of_draw(detector(), draw_of(), tmp_path, "run", {})
    damaged.unlink()
    of_draw(detector(), draw_of(), tmp_path, "run", {})


def test_images_are_taken_by_their_place():
    images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
    taken = take(iter([images[:4], images[4:7], images[7:]]), [9, 0, 4, 9])
    np.testing.assert_array_equal(taken, images[[9, 0, 4, 9]])


def test_a_file_is_looked_at_in_its_order_and_its_images_are_found(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)
    write_samples(tmp_path / "samples.npz", [images], images.shape, None)
    for path in (tmp_path / "samples.npz", tmp_path):
        subject = of_path(detector(), path)
        np.testing.assert_array_equal(subject.features.pooled, images.reshape(11, -1)[:, :5])
        np.testing.assert_array_equal(subject.take([10, 3]), images[[10, 3]])
        assert subject.image_shape == (4, 4, 3)


def test_labels_have_the_shares_of_the_data_in_an_order_of_the_seed():
    labels = shared_labels([70, 20, 10, 0], 50, 0)
    assert np.bincount(labels, minlength=4).tolist() == [35, 10, 5, 0] and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, shared_labels([7, 2, 1, 0], 50, 0))
    assert np.any(labels != shared_labels([70, 20, 10, 0], 50, 1)) and np.any(labels != np.sort(labels))
    # 50 of each of a thousand classes; what does not divide goes to the largest remainders.
    assert set(np.bincount(shared_labels([1] * 1000, 50_000, 0))) == {50}
    assert np.bincount(shared_labels([5, 3, 2], 4, 0)).tolist() == [2, 1, 1]
    assert np.bincount(shared_labels([1, 1, 1], 2, 0)).tolist() == [1, 1]
