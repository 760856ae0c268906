"""Sets of images as a detector's features: going on after a kill, labels, places."""

import dataclasses

import numpy as np
import pytest

from pdm_tf.evaluation.features import Detector, extract
from pdm_tf.evaluation.image_sets import from_path, kept_features, shared_labels
from pdm_tf.images import write_samples
from pdm_tf.ledger import Ledger, Share
from tests.sampling.mortal import Killed, draw_of


def pixels(images):
    """Pooled and spatial features: some pixels."""
    flat = images.astype(np.float32).reshape(len(images), -1)
    return flat[:, :5], flat[:, 5:12], None


DETECTOR = Detector("pixels", "0" * 64, "none", {}, pixels, batch_size=8)


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path, {"work": 1})


@pytest.fixture(scope="module")
def whole():
    return extract(DETECTOR, draw_of())


def assert_same(features, expected):
    for found, values in zip(features, expected):
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dies_at", [0, 2])
def test_a_killed_evaluation_draws_no_image_twice(ledger, whole, dies_at):
    with pytest.raises(Killed):
        kept_features(DETECTOR, draw_of(dies_at), ledger)
    again = draw_of()
    assert_same(kept_features(DETECTOR, again, ledger), whole)
    assert [indices[0] for indices in again.sampler.drawn] == [0, 4, 8][dies_at:]


def test_workers_share_the_batches_and_the_first_one_has_all(ledger, whole):
    first, second = (dataclasses.replace(draw_of(), share=Share(number, 2)) for number in range(2))
    assert kept_features(DETECTOR, second, ledger) is None
    assert_same(kept_features(DETECTOR, first, ledger), whole)
    assert [indices[0] for indices in second.sampler.drawn] == [4]
    assert [indices[0] for indices in first.sampler.drawn] == [0, 8]


def test_a_file_is_read_in_its_order_and_its_images_are_found(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)
    write_samples(tmp_path / "samples.npz", [images], images.shape, None)
    for path in (tmp_path / "samples.npz", tmp_path):
        found = from_path(DETECTOR, path)
        np.testing.assert_array_equal(found.features.pooled, images.reshape(11, -1)[:, :5])
        np.testing.assert_array_equal(found.images([10, 3]), images[[10, 3]])
        assert found.image_shape == (4, 4, 3)


def test_labels_have_the_shares_of_the_data_in_an_order_of_the_seed():
    labels = shared_labels([70, 20, 10, 0], 50, 0)
    assert np.bincount(labels, minlength=4).tolist() == [35, 10, 5, 0] and labels.dtype == np.int32
    np.testing.assert_array_equal(labels, shared_labels([7, 2, 1, 0], 50, 0))
    assert np.any(labels != shared_labels([70, 20, 10, 0], 50, 1)) and np.any(labels != np.sort(labels))
    # 50 of each of a thousand classes; what does not divide goes to the largest remainders.
    assert set(np.bincount(shared_labels([1] * 1000, 50_000, 0))) == {50}
    assert np.bincount(shared_labels([5, 3, 2], 4, 0)).tolist() == [2, 1, 1]
