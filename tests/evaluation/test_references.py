"""References: made once and kept, made anew where damaged; files of ADM, samples and folders."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from pdm_tf.data import find_dataset, uint8_batches
from pdm_tf.errors import UserError
from pdm_tf.evaluation import references
from pdm_tf.evaluation.distances import frechet_distance
from pdm_tf.evaluation.features import Detector
from pdm_tf.images import write_png, write_samples
from tests.data.fixtures import encode, example, flip_byte, numbered_dataset, write_shards


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


@pytest.fixture
def dataset(tmp_path):
    return numbered_dataset(tmp_path / "data", [30, 20])


def stored(info, split: str = "train") -> np.ndarray:
    return np.concatenate(list(uint8_batches(info, split, 7)))


def assert_is_of(reference: references.Reference, images: np.ndarray) -> None:
    pooled, spatial, _ = Averages()(images)
    assert reference.count == len(images)
    np.testing.assert_allclose(reference.moments.mean, pooled.mean(axis=0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(
        reference.moments.covariance, np.cov(pooled.astype(float), rowvar=False), rtol=1e-6
    )
    np.testing.assert_allclose(
        reference.spatial_moments.covariance, np.cov(spatial.astype(float), rowvar=False), rtol=1e-6
    )
    np.testing.assert_array_equal(reference.features, pooled[reference.places])


def assert_same(a: references.Reference, b: references.Reference) -> None:
    """To the bit: distances to both print alike."""
    for x, y in ((a.moments, b.moments), (a.spatial_moments, b.spatial_moments)):
        assert x.count == y.count
        np.testing.assert_array_equal(x.mean, y.mean)
        np.testing.assert_array_equal(x.covariance, y.covariance)
    np.testing.assert_array_equal(a.features, b.features)
    np.testing.assert_array_equal(a.places, b.places)
    assert a.what == b.what and a.count == b.count


# --- a data set's split --------------------------------------------------------------------------


def test_a_split_is_gone_through_once(dataset):
    seer = detector()
    first = references.of_split(seer, dataset, "train")
    assert_is_of(first, stored(dataset))
    assert first.what["data"] == "made" and first.what["detector"] == "inception"
    calls, done = seer.network.calls, []
    again = references.of_split(seer, dataset, "train", progress=done.append)
    assert seer.network.calls == calls and not done
    assert_same(first, again)
    assert len(os.listdir(dataset.directory / "references")) == 1


def test_features_of_some_images_are_kept_and_evenly_spread(dataset):
    reference = references.of_split(detector(), dataset, "train", keep=8)
    assert_is_of(reference, stored(dataset))
    assert len(reference.places) == 8 and set(np.diff(reference.places)) <= {6, 7}
    np.testing.assert_array_equal(references.evenly(5, 100), range(5))


def test_another_detector_or_other_data_is_another_file(dataset):
    first = references.of_split(detector(), dataset, "train")
    references.of_split(detector(digest="1" * 64), dataset, "train")
    references.of_split(detector("other"), dataset, "train")
    assert len(os.listdir(dataset.directory / "references")) == 3
    longer = numbered_dataset(dataset.directory, [30, 21])
    assert longer.sha256 != first.what["data_sha256"]
    assert references.of_split(detector(), longer, "train").count == 51


def test_a_manifest_tells_data_apart_where_there_is_one(dataset):
    (dataset.directory / "manifest.json").write_text("{}")
    before = dataset.sha256
    (dataset.directory / "manifest.json").write_text("{ }")
    assert dataclasses.replace(dataset).sha256 != before


def damage_a_byte(path):
    flip_byte(path, os.path.getsize(path) // 2)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def lose_an_array(path):
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6), count=50, what="{}")


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_a_byte, cut, lose_an_array, empty])
def test_a_damaged_file_is_made_anew_with_one_line(dataset, damage, capsys):
    first = references.of_split(detector(), dataset, "train")
    (file,) = (dataset.directory / "references").iterdir()
    damage(file)
    assert_same(references.of_split(detector(), dataset, "train"), first)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(file) in line and "damaged" in line and line.endswith("it is made anew")
    references.of_split(detector(), dataset, "train")
    assert not capsys.readouterr().err


def test_a_reference_that_cannot_be_kept_is_given_all_the_same(dataset, tmp_path, capsys):
    """A file stands where the folder would be: that stops root, too."""
    (dataset.directory / "references").write_text("")
    cache = tmp_path / "cache"
    first = references.of_split(detector(), dataset, "train", cache=cache)
    assert len(list((cache / "references").iterdir())) == 1 and not capsys.readouterr().err
    seer = detector()
    assert_same(references.of_split(seer, dataset, "train", cache=cache), first)
    assert seer.network.calls == 0
    (tmp_path / "file").write_text("")
    assert_same(references.of_split(detector(), dataset, "train", cache=tmp_path / "file"), first)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("note: the reference is not kept for the next time (cannot write")


def test_the_embedded_data_set_s_reference_is_kept_outside_of_the_program(tmp_path):
    info = find_dataset("emoji64", "data")
    before = sorted(os.listdir(info.directory))
    references.of_split(detector(), info, "validation", cache=tmp_path)
    assert sorted(os.listdir(info.directory)) == before
    assert len(list((tmp_path / "references").iterdir())) == 1


def test_a_damaged_data_set_leaves_no_reference(dataset):
    shard = dataset.splits["train"].shards[1]
    flip_byte(shard, os.path.getsize(shard) // 2)
    with pytest.raises(UserError, match="record"):
        references.of_split(detector(), dataset, "train")
    assert not (dataset.directory / "references").exists()
    with pytest.raises(UserError, match="no split 'test'"):
        references.of_split(detector(), dataset, "test")


def test_grey_data_say_that_they_were_repeated(tmp_path):
    grey = [np.full((8, 6), level, np.uint8) for level in (0, 90, 200)]
    info = write_shards(tmp_path, [[example(encode(image)) for image in grey]], shape=(8, 6, 1))
    reference = references.of_split(detector(), info, "train")
    assert reference.what["grey"] == "repeated to three channels"
    np.testing.assert_allclose(reference.moments.mean[:3], np.mean([0, 90, 200]))


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
    assert in_run.what["images_sha256"] == in_file.what["images_sha256"]
    in_folder = references.of_path(detector(), tmp_path / "pngs")
    assert_is_of(in_folder, np.concatenate([images[::2], images[1::2]]))
    split = references.of_split(detector(), dataset, "train")
    assert abs(frechet_distance(split.moments, in_folder.moments)) < 1e-6


def test_what_is_no_reference_is_refused(tmp_path):
    refusals = {
        "none.npz": "does not exist",
        "text.npz": "is no whole .npz file",
        "empty": "are no images",
    }
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for name, message in refusals.items():
        with pytest.raises(UserError, match=message):
            references.of_path(detector(), tmp_path / name)


def test_adm_s_files_are_read_and_their_statistics_count(tmp_path):
    """mu, sigma, mu_s, sigma_s of the whole set; arr_0, some images, for the neighbours alone."""
    rng = np.random.default_rng(0)
    shown = rng.integers(0, 256, (40, 4, 4, 3), np.uint8)
    arrays = {
        "mu": rng.normal(size=6),
        "sigma": np.eye(6),
        "mu_s": rng.normal(size=12),
        "sigma_s": np.eye(12),
    }
    np.savez(tmp_path / "VIRTUAL.npz", **arrays, arr_0=shown)
    reference = references.of_path(detector(), tmp_path / "VIRTUAL.npz")
    np.testing.assert_array_equal(reference.moments.mean, arrays["mu"])
    np.testing.assert_array_equal(reference.spatial_moments.covariance, arrays["sigma_s"])
    np.testing.assert_array_equal(reference.features, Averages()(shown)[0])
    assert reference.count is None and reference.what["sha256"]
    with pytest.raises(UserError, match="statistics of the detector 'inception', not of this 'other'"):
        references.of_path(detector("other"), tmp_path / "VIRTUAL.npz")
    np.savez(tmp_path / "small.npz", mu=np.zeros(5), sigma=np.eye(5), arr_0=shown)
    with pytest.raises(UserError, match="statistics of 5 features, and inception has 6"):
        references.of_path(detector(), tmp_path / "small.npz")
    np.savez(tmp_path / "alone.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    alone = references.of_path(detector(), tmp_path / "alone.npz")
    assert alone.features is None and alone.spatial_moments is None
    np.savez(tmp_path / "odd.npz", mu=np.zeros(6), sigma=np.eye(5))
    with pytest.raises(UserError, match="no whole file of statistics"):
        references.of_path(detector(), tmp_path / "odd.npz")


def test_a_written_reference_is_adm_s_and_comes_back(dataset, tmp_path):
    reference = references.of_split(detector(), dataset, "train")
    images = stored(dataset)[:20]
    references.write_adm(reference, tmp_path / "ours.npz", images)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        pooled, spatial, _ = Averages()(stored(dataset))
        for mean, covariance, rows in (("mu", "sigma", pooled), ("mu_s", "sigma_s", spatial)):
            np.testing.assert_allclose(file[mean], np.mean(rows, axis=0, dtype=float), rtol=1e-6)
            np.testing.assert_allclose(file[covariance], np.cov(rows.astype(float), rowvar=False), rtol=1e-6)
        np.testing.assert_array_equal(file["arr_0"], images)
    again = references.of_path(detector(), tmp_path / "ours.npz")
    assert again.count == 50 and len(again.features) == 20
    assert frechet_distance(again.moments, reference.moments) == pytest.approx(0, abs=1e-9)
    renewed = dataclasses.replace(detector(), sha256="1" * 64)
    with pytest.raises(UserError, match="use that one"):
        references.of_path(renewed, tmp_path / "ours.npz")
