"""References: made once and kept, replaced where damaged; files of ADM, samples and folders."""

from __future__ import annotations

import os

import numpy as np
import pytest

from pdm_tf.data import labelled_batches
from pdm_tf.errors import UserError
from pdm_tf.evaluation import references
from pdm_tf.evaluation.distances import frechet_distance
from pdm_tf.evaluation.features import Detector, of_crops
from pdm_tf.images import write_png, write_samples
from tests.data.fixtures import flip_byte, numbered_dataset


class Averages:
    """A detector's network in NumPy: mean and deviation of each channel; the upper left corner as spatial."""

    def __init__(self):
        self.calls = 0

    def __call__(self, images: np.ndarray):
        self.calls += 1
        x = images.astype(np.float32)
        pooled = np.concatenate([x.mean(axis=(1, 2)), x.std(axis=(1, 2))], axis=1)
        return pooled, x[:, :2, :2].reshape(len(x), -1), None


def detector(name: str = "inception", digest: str = "0" * 64) -> Detector:
    labels = {"frechet": "FID", "spatial": "sFID", "kernel": "KID"}
    return Detector(name, digest, "none", labels, Averages(), batch_size=16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "references"


@pytest.fixture
def dataset(tmp_path):
    return numbered_dataset(tmp_path / "data", [30, 20])


def stored(info, split: str = "train") -> np.ndarray:
    return np.concatenate([images for images, _ in labelled_batches(info, split, 7)])


def assert_is_of(reference: references.Reference, images: np.ndarray) -> None:
    pooled, spatial, _ = Averages()(images)
    assert reference.count == len(images) and reference.image_shape == images.shape[1:]
    np.testing.assert_allclose(reference.moments.mean, pooled.mean(axis=0, dtype=float), rtol=1e-6)
    covariance = np.cov(pooled.astype(float), rowvar=False)
    np.testing.assert_allclose(reference.moments.covariance, covariance, rtol=1e-6)
    np.testing.assert_allclose(reference.spatial_moments.mean, spatial.mean(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_array_equal(reference.features, pooled[reference.places])


def assert_same(a: references.Reference, b: references.Reference) -> None:
    """To the bit: distances to both print alike."""
    for x, y in ((a.moments, b.moments), (a.spatial_moments, b.spatial_moments)):
        assert x.count == y.count
        np.testing.assert_array_equal(x.mean, y.mean)
        np.testing.assert_array_equal(x.covariance, y.covariance)
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.places, b.places)
    assert (a.title, a.count, a.details) == (b.title, b.count, b.details)


# --- a data set's split --------------------------------------------------------------------------


def test_a_split_is_gone_through_once(dataset, cache):
    counting = detector()
    first = references.of_split(counting, dataset, "train")
    assert_is_of(first, stored(dataset))
    assert first.title == "made, train (50)" and first.details["detector"] == "inception"
    calls, done = counting.network.calls, []
    again = references.of_split(counting, dataset, "train", progress=done.append)
    assert counting.network.calls == calls and not done
    assert_same(first, again)
    assert len(os.listdir(cache)) == 1
    references.of_split(detector(digest="1" * 64), dataset, "train")
    longer = numbered_dataset(dataset.directory, [30, 21])
    assert references.of_split(detector(), longer, "train").count == 51
    assert len(os.listdir(cache)) == 3


def test_features_of_some_images_are_kept_and_evenly_spread(dataset, monkeypatch):
    monkeypatch.setattr(references, "KEEP", 8)
    reference = references.of_split(detector(), dataset, "train")
    assert_is_of(reference, stored(dataset))
    assert len(reference.places) == 8 and set(np.diff(reference.places)) <= {6, 7}


def test_a_damaged_file_is_replaced_with_one_line(dataset, cache, capsys):
    first = references.of_split(detector(), dataset, "train")
    (file,) = cache.iterdir()
    for damaged in (file.read_bytes()[:-100], b""):
        file.write_bytes(damaged)
        assert_same(references.of_split(detector(), dataset, "train"), first)
        (line,) = capsys.readouterr().err.splitlines()
        assert str(file) in line and "damaged" in line and line.endswith("it is replaced")


def test_a_reference_that_cannot_be_kept_is_given_all_the_same(dataset, cache, capsys):
    """A file stands where the folder would be: that stops root, too."""
    cache.parent.mkdir()
    cache.write_text("")
    assert_is_of(references.of_split(detector(), dataset, "train"), stored(dataset))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: the reference is not kept for the next time (cannot write")


def test_a_damaged_data_set_leaves_no_reference(dataset, cache):
    shard = dataset.splits["train"].shards[1]
    flip_byte(shard, os.path.getsize(shard) // 2)
    with pytest.raises(UserError, match="record"):
        references.of_split(detector(), dataset, "train")
    assert not cache.exists()
    with pytest.raises(UserError, match="no split 'test'"):
        references.of_split(detector(), dataset, "test")


# --- files and folders ---------------------------------------------------------------------------


def test_samples_in_a_file_or_a_folder_are_one_reference(dataset, tmp_path):
    images = stored(dataset)
    (tmp_path / "run").mkdir()
    write_samples(tmp_path / "run" / "samples.npz", iter([images]), images.shape, None)
    write_png(tmp_path / "run" / "grid.png", images[0].repeat(3, 0))  # as sampling leaves it; not looked at
    for number, image in enumerate(images):
        write_png(tmp_path / "pngs" / f"{number % 2}" / f"{number:03d}.png", image)
    in_file = references.of_path(detector(), tmp_path / "run" / "samples.npz")
    assert_is_of(in_file, images)
    in_run = references.of_path(detector(), tmp_path / "run")
    assert in_run.details["images_sha256"] == in_file.details["images_sha256"]
    in_folder = references.of_path(detector(), tmp_path / "pngs")
    assert_is_of(in_folder, np.concatenate([images[::2], images[1::2]]))
    split = references.of_split(detector(), dataset, "train")
    assert abs(frechet_distance(split.moments, in_folder.moments)) < 1e-6


def test_adm_s_files_are_read_and_their_statistics_count(tmp_path):
    """mu, sigma, mu_s, sigma_s of the whole set; arr_0, some images, for the neighbours alone."""
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
    pooled = {"mu": rng.normal(size=6), "sigma": np.eye(6)}
    spatial = {"mu_s": rng.normal(size=12), "sigma_s": np.eye(12)}
    np.savez(tmp_path / "VIRTUAL.npz", **pooled, **spatial, arr_0=shown)
    reference = references.of_path(detector(), tmp_path / "VIRTUAL.npz")
    np.testing.assert_array_equal(reference.moments.mean, pooled["mu"])
    np.testing.assert_array_equal(reference.spatial_moments.covariance, spatial["sigma_s"])
    np.testing.assert_array_equal(reference.features, Averages()(shown)[0])
    assert reference.count is None and reference.details["sha256"]
    np.savez(tmp_path / "alone.npz", **pooled)
    alone = references.of_path(detector(), tmp_path / "alone.npz")
    assert alone.features is None and alone.spatial_moments is None and alone.image_shape is None


def test_statistics_of_other_features_are_refused_in_one_line(tmp_path):
    """Those of pytorch-fid's smaller layers, say."""
    np.savez(tmp_path / "small.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.savez(tmp_path / "odd.npz", mu=np.zeros(6), sigma=np.eye(5))
    np.savez(tmp_path / "spatial.npz", mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(7), sigma_s=np.eye(7))
    for name, message in {
        "small": "statistics of 5 features, and inception has 6: use the detector that they are of",
        "spatial": "statistics of 7 features, and inception has 12",
        "odd": "no whole file of statistics",
    }.items():
        with pytest.raises(UserError, match=message):
            references.of_path(detector(), tmp_path / f"{name}.npz")


def test_a_kept_reference_of_crops_is_the_one_that_was_made(dataset):
    made, kept = (references.of_split(of_crops(detector(), 4), dataset, "train") for _ in range(2))
    assert kept.count == made.count
    np.testing.assert_allclose(kept.moments.covariance, made.moments.covariance)
