"""The table of an evaluation with its notes, the check for copies, and the metrics in it."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from pdm_tf.errors import UserError
from pdm_tf.evaluation import metrics, references, report
from pdm_tf.evaluation.copies import CopyCheck
from pdm_tf.evaluation.distances import Manifold, Moments
from pdm_tf.evaluation.features import CROPS, Detector, Features, extract, of_crops
from pdm_tf.evaluation.image_sets import ImageSet
from pdm_tf.evaluation.metrics import METRICS, Comparison, Measurement
from pdm_tf.evaluation.references import Reference, of_images


def mean_colour(images):
    return images.astype(np.float32).mean((1, 2)) / 255, None, None


def everything(images):
    """Pooled and spatial features, and probabilities, as Inception has them."""
    colour, _, _ = mean_colour(images)
    powers = np.exp(3 * colour)
    return colour, images[:, 0, :, 0].astype(np.float32), powers / powers.sum(axis=1, keepdims=True)


DETECTOR = Detector("colour", "0" * 64, "none", {"frechet": "FD-colour", "kernel": "KD-colour"}, mean_colour)
LABELS = {"frechet": "FID", "spatial": "sFID", "inception_score": "IS", "kernel": "KID"}
INCEPTION = Detector("inception", "0" * 64, "none", LABELS, everything)


def images_of(generator, count, shift=0, side=4):
    colours = generator.integers(0, 200, (count, 1, 1, 3)) + shift
    return np.clip(colours, 0, 255).astype(np.uint8).repeat(side, 1).repeat(side, 2)


def reference_of(images, detector=DETECTOR, title="some"):
    return of_images(detector, [images], len(images), title, {})


def set_of(images, detector=DETECTOR):
    """Images in memory as a row of the table."""
    features = extract(detector, [images])
    return ImageSet("some", {}, features, images.shape[1:], lambda places: images[np.asarray(places)])


# --- metrics -------------------------------------------------------------------------------------


def test_crops_are_squares_of_each_image_wherever_it_comes():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    detector = of_crops(dataclasses.replace(DETECTOR, batch_size=16), 4)
    found = extract(detector, [images[:5], images[5:]]).pooled.reshape([40, CROPS, 3])
    squares = np.lib.stride_tricks.sliding_window_view(images, (4, 4), axis=(1, 2)).mean(axis=(-2, -1)) / 255
    off = np.abs(found[:, :, None, None] - squares[:, None]).max(axis=-1)
    assert off.min(axis=(2, 3)).max() < 1e-6
    np.testing.assert_allclose(extract(detector, [images[[7]]]).pooled, found[7], atol=1e-6)
    metrics = Comparison(detector, reference_of(images, detector)).measure(extract(detector, [images]))
    ((title, distance),) = metrics.items()
    assert title == "FD-colour-crops4" and abs(distance.value) < 1e-9
    with pytest.raises(UserError, match="crops of 9 pixels do not fit into images of 8 x 8"):
        extract(of_crops(DETECTOR, 9), [images])


def test_further_images_measure_more_and_errors_stand_beside(monkeypatch):
    manifolds = []
    monkeypatch.setattr(metrics, "Manifold", lambda rows: manifolds.append(rows) or Manifold(rows))
    generator = np.random.default_rng(0)
    comparison = Comparison(DETECTOR, reference_of(images_of(generator, 400)))
    sets = [extract(DETECTOR, [images_of(generator, 300, shift)]) for shift in (0, 50)]
    same, shifted = map(comparison.measure, sets)
    assert len(manifolds) == 1  # the reference's neighbours are found once, and change neither
    assert Comparison(DETECTOR, comparison.reference).measure(sets[1]) == shifted
    values = comparison.distances(sets[1].pooled)
    assert values == {name: shifted[name].value for name in ("FD-colour", "KD-colour")}
    assert same["FD-colour"].value < 0.01 < shifted["FD-colour"].value
    assert shifted["KD-colour"].value > 10 * same["KD-colour"].value
    assert same["precision"].value > shifted["precision"].value
    assert all(0 <= found.error < max(1, found.value) for found in shifted.values())
    text = report.table([("a", 300, same), ("b", 300, shifted)]).splitlines()
    assert text[0].startswith(
        "| images | N | FD-colour | KD-colour | precision | recall | density | coverage"
    )
    assert f"| {shifted['FD-colour']} | {shifted['KD-colour']} |" in text[3]


def test_a_detector_of_all_features_has_all_metrics_and_few_images_have_few():
    images = images_of(np.random.default_rng(0), 40)
    comparison = Comparison(INCEPTION, reference_of(images, INCEPTION))
    found = comparison.measure(extract(INCEPTION, [images]))
    assert list(found) == [INCEPTION.title(name) for metric in METRICS for name in metric.names]
    assert found["IS"].to_json() == {"value": found["IS"].value, "error": None}  # one split
    assert str(Measurement(12.3456, 0.123)) == "12.35 ± 0.12"
    assert str(Measurement(2.0, spread=0.25)) == "2 (spread 0.25)"
    assert list(comparison.measure(extract(INCEPTION, [images[:5]]))) == ["FID", "sFID", "IS"]


# --- notes ---------------------------------------------------------------------------------------


def counted(count, side=4):
    features = Features(np.zeros((count, 3), np.float32))
    return ImageSet("some", {}, features, (side, side, 3), lambda places: None)


@pytest.fixture
def wide():
    """A reference of enough images for 3 features."""
    return Reference("wide", Moments.of(np.eye(3)), None, None, None, 500, {"image_shape": [4, 4, 3]})


def test_numbers_that_mislead_are_noted(wide):
    few = reference_of(np.zeros((2, 4, 4, 3), np.uint8))
    assert any("few for 3 features" in note for note in report.notes_on(DETECTOR, few, counted(500)))
    other = report.notes_on(DETECTOR, wide, counted(500))
    assert other == ["the detector is colour: these numbers are not FID"]
    assert "published FIDs are of 50,000" in report.notes_on(INCEPTION, wide, counted(500))[0]
    assert report.notes_on(INCEPTION, wide, counted(50_000)) == []
    (note,) = report.notes_on(INCEPTION, wide, counted(50_000, side=8))
    assert note.startswith("the images are 8 x 8 pixels and the reference's 4 x 4: the detector resizes both")
    wide.details.update(statistics="of a network that is not named", path="fid.npz")
    (note,) = report.notes_on(INCEPTION, wide, counted(50_000))
    assert note.startswith("fid.npz does not name the network and resize of its statistics")


# --- copies --------------------------------------------------------------------------------------


def test_copies_are_found_and_shown_beside_the_held_out_images(tmp_path, capsys):
    generator = np.random.default_rng(1)
    train, unseen = images_of(generator, 300), images_of(generator, 270)
    held_out = np.concatenate([train[:30], unseen])
    reference = reference_of(train, title="dots, train (300)")
    check = CopyCheck(
        reference,
        reference_of(held_out, title="dots, validation (300)"),
        train.__getitem__,
    )
    sets = [set_of(images_of(generator, 200)), set_of(train[50:250])]
    report.report(DETECTOR, reference, sets, tmp_path, check)
    out = capsys.readouterr().out
    assert "copies, some: 100.0% of the samples are nearer" in out
    assert "| dots, validation (300) | 300 |" in out
    assert "note: 30 of 300 held-out images are training images, too" in out
    honest, copied, floor = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert honest["copies"]["expected_share"] == 0.05
    assert honest["copies"]["share_nearer_than_95_percent_of_held_out"] < 0.12
    assert copied["copies"]["share_nearer_than_95_percent_of_held_out"] == 1
    assert copied["copies"]["median_distance"] == 0 and "copies" not in floor
    assert copied["copies"]["training_images_searched"] == 300
    pairs = zip(copied["copies"]["closest_samples"], copied["copies"]["their_training_images"])
    assert all(np.array_equal(train[50 + sample], train[place]) for sample, place in pairs)
    picture = np.asarray(Image.open(tmp_path / "nearest_2.png"))
    above, below = picture[2:6], picture[8:12]
    np.testing.assert_array_equal(above, below)  # the very images
    assert above[:, 2:6].std() > 0 and (tmp_path / "nearest.png").exists()
    (tmp_path / "nearest_town.png").touch()
    report.report(DETECTOR, reference, sets[:1], tmp_path, copy_check=check)
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["nearest.png", "nearest_town.png"]


def test_samples_of_another_size_or_channels_are_compared_and_shown(tmp_path, monkeypatch, capsys):
    """Grey data's samples.npz has three channels; samples may be twice as large as the data."""
    generator = np.random.default_rng(1)
    train = images_of(generator, 100)[..., :1]
    monkeypatch.setattr(references, "KEEP", 40)
    reference = of_images(DETECTOR, [train], 100, "grey", {})
    check = CopyCheck(reference, reference_of(images_of(generator, 9)), train.__getitem__)
    larger = images_of(generator, 30, side=8)
    report.report(DETECTOR, reference, [set_of(larger)], tmp_path, check)
    assert np.asarray(Image.open(tmp_path / "nearest.png")).shape == (2 * 8 + 3 * 2, 8 * 8 + 9 * 2, 3)
    out = capsys.readouterr().out
    assert "note: copies are looked for among 40 of 100 images" in out
    assert "(10% if nothing is copied)" in out  # the nearest of 9 images is the limit
