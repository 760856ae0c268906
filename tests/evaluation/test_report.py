"""The table of an evaluation, the check for copies, and --mode=evaluate through the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdm_tf.averages import reconstruct
from pdm_tf.evaluation import report
from pdm_tf.evaluation.distances import Manifold, Moments, nearest
from pdm_tf.evaluation.features import Detector, Features, extract
from pdm_tf.evaluation.references import of_images
from pdm_tf.evaluation.subjects import Subject
from pdm_tf.images import write_samples
from pdm_tf.run import RunFolder
from pdm_tf.weights import write_arrays
from tests.in_process import run_mode
from tests.tiny_runs import tiny_config, write_run, write_snapshots

ROOT = Path(__file__).parent.parent.parent


def means(images):
    """A detector of 3 features: the mean colour."""
    return images.astype(np.float32).mean((1, 2)) / 255, None, None


DETECTOR = Detector("colour", "0" * 64, "none", {"frechet": "FD-colour", "kernel": "KD-colour"}, means)


def images_of(generator, count, shift=0):
    return np.clip(generator.integers(0, 200, (count, 1, 1, 3)) + shift, 0, 255).astype(np.uint8).repeat(4, 1)


def test_what_lies_further_away_measures_more_and_errors_stand_beside():
    generator = np.random.default_rng(0)
    reference = of_images(DETECTOR, [images_of(generator, 400)], 400, {})
    comparison = report.Comparison(DETECTOR, reference)
    sets = [extract(DETECTOR, [images_of(generator, 300, shift)]) for shift in (0, 50)]
    same, shifted = map(comparison.measure, sets)
    # What is kept of the reference between two sets changes neither.
    assert report.Comparison(DETECTOR, reference).measure(sets[1]) == shifted
    assert comparison.distances(sets[1].pooled).items() <= shifted.items()
    assert same["FD-colour"] < 0.01 < shifted["FD-colour"] and shifted["KD-colour"] > 10 * same["KD-colour"]
    assert 0 < shifted["FD-colour error"] < shifted["FD-colour"] and same["precision"] > shifted["precision"]
    text = report.table([("a", 300, same), ("b", 300, shifted)])
    assert text.splitlines()[0].startswith("| images | N | FD-colour | KD-colour | precision | recall")
    assert f"{shifted['FD-colour']:.4g} ± {shifted['FD-colour error']:.2g}" in text.splitlines()[3]


def test_copies_are_told_from_new_images_and_the_pairs_are_right():
    generator = np.random.default_rng(1)
    train, held_out, new = (images_of(generator, 500) for _ in range(3))
    reference = of_images(DETECTOR, [train], 500, {})
    _, unseen = nearest(means(held_out)[0], reference.features)
    honest = report.copies(means(new)[0], reference, unseen)
    copied = report.copies(means(train[40:140])[0], reference, unseen)
    assert honest["share_nearer_than_95_percent_of_held_out"] < 0.12
    assert copied["share_nearer_than_95_percent_of_held_out"] == 1 and copied["median_distance"] == 0
    pairs = zip(copied["closest_samples"], copied["their_training_images"])
    assert all(np.array_equal(train[40 + sample], train[place]) for sample, place in pairs)


def subject_of(images, detector=DETECTOR):
    """Images in memory as a row of the table."""
    features = extract(detector, [images])
    return Subject("some", {}, features, images.shape[1:], lambda places: images[np.asarray(places)])


def test_a_reference_s_balls_are_found_once_for_a_table(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(report, "Manifold", lambda *args: made.append(args) or Manifold(*args))
    generator = np.random.default_rng(2)
    reference = of_images(DETECTOR, [images_of(generator, 100)], 100, {"path": "some"})
    subjects = [subject_of(images_of(generator, 30)) for _ in range(3)]
    report.report(DETECTOR, reference, subjects, tmp_path, {}, "nobody asked")
    assert len(made) == 1
    results = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert len({result["recall"] for result in results}) == 3


def test_few_and_grey_images_are_warned_of():
    of_count = {
        count: subject_of(np.zeros((2, 4, 4, 3), np.uint8))._replace(
            features=Features(np.zeros((count, 3), np.float32))
        )
        for count in (500, 50_000)
    }
    few = of_images(DETECTOR, [np.zeros((2, 4, 4, 3), np.uint8)], 2, {})
    assert any("few for 3 features" in note for note in report.warnings(DETECTOR, few, of_count[500]))
    many = few._replace(count=500, moments=Moments.of(np.eye(3)))
    assert report.warnings(DETECTOR, many, of_count[500]) == [
        "the detector is colour: these numbers are no FID"
    ]
    inception = Detector("inception", "", "", {"frechet": "FID", "kernel": "KID"}, means)
    assert "published FIDs are of 50,000" in report.warnings(inception, many, of_count[500])[0]
    assert report.warnings(inception, many, of_count[50_000]) == []
    grey = report.warnings(inception, many, of_count[50_000]._replace(image_shape=(4, 4, 1)))
    assert grey == ["the images are grey: they were repeated to three channels for the detector"]
    five = Features(np.random.default_rng(0).random((5, 3)))
    assert report.Comparison(DETECTOR, many).measure(five).keys() == {"FD-colour"}


def evaluate(capsys, **flags) -> tuple[int, str]:
    """Exit status and output of one --mode=evaluate."""
    return run_mode(capsys, **{"mode": "evaluate", "strategy": "cpu", **flags})


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_sets_of_samples_make_one_table(home, capsys):
    generator = np.random.default_rng(2)
    for name in ("a", "b"):
        batch = generator.integers(0, 255, (12, 16, 16, 3), np.uint8)
        write_samples(home / f"{name}.npz", [batch], (12, 16, 16, 3), None)
    samples, reference = [str(home / "a.npz"), str(home / "b.npz")], str(home / "a.npz")
    status, out = evaluate(capsys, samples=samples, reference=reference, out=str(home / "out"))
    assert status == 0, out
    found = json.loads((home / "out" / "evaluation.json").read_text())
    label = "FD-efficientnet_lite0"
    assert abs(found["results"][0][label]) < 1e-3 < found["results"][1][label]
    assert found["reference"]["images"] == 12 and len(found["detector"]["sha256"]) == 64
    assert f"\n| images | N | {label} |" in out and "no FID" in out
    assert "copies: not looked for, because the reference is no data set's training split" in out
    for flags, message in (
        ({"samples": ["gone.npz"], "reference": reference}, "gone.npz"),
        ({"samples": samples, "reference": "tset"}, "has the splits"),
        ({"samples": samples, "detector": "resnet"}, "there is no detector 'resnet'"),
    ):
        status, text = evaluate(capsys, out=str(home / "other"), **flags)
        assert status == 2 and message in text and len(text.strip().splitlines()) == 1


def test_runs_and_samples_make_one_table_with_labels_as_the_data_has_them(home, capsys):
    for seed, name in enumerate(("a", "b")):
        write_run(home / name, seed=seed)
    batch = np.random.default_rng(3).integers(0, 255, (30, 16, 16, 3), np.uint8)
    write_samples(home / "reference.npz", [batch], batch.shape, None)
    runs, flags = f"{home / 'a'},{home / 'b'}", {"steps": "3", "num_samples": 12}
    flags["reference"] = str(home / "reference.npz")
    status, out = evaluate(capsys, run_dir=runs, samples=[flags["reference"]], **flags)
    assert status == 0, out
    found = json.loads((home / "a" / "evaluation" / "evaluation.json").read_text())["results"]
    assert [row["name"] for row in found] == [str(home / name) for name in ("reference.npz", "a", "b")]
    assert os.listdir(home / "a" / "evaluation") == ["evaluation.json"]
    # A file has no classes: each gets as many; named ones come in turn.
    assert found[1]["label_counts"] == [4, 4, 4] and found[1]["labels"] == "equal shares"
    alone = {**flags, "run_dir": str(home / "b"), "out": str(home / "alone")}
    assert evaluate(capsys, **alone)[0] == 0
    (again,) = json.loads((home / "alone" / "evaluation.json").read_text())["results"]
    assert again == found[2] != found[1]
    assert evaluate(capsys, **alone, labels=["owl", "owl", "cat"])[0] == 0
    (named,) = json.loads((home / "alone" / "evaluation.json").read_text())["results"]
    assert named["label_counts"] == [4, 0, 8] and named["labels"] == "in turn"
    write_run(home / "other", tiny_config(data__num_classes=2, data__label_names=("x", "y")))
    status, text = evaluate(capsys, **{**flags, "run_dir": f"{home / 'a'},{home / 'other'}"})
    assert status == 2 and "are of different data: evaluate one at a time" in text


def test_copies_are_said_and_shown_beside_the_held_out_images(tmp_path, capsys):
    generator = np.random.default_rng(1)
    train, held_out = (images_of(generator, 300) for _ in range(2))
    references = [
        of_images(DETECTOR, [part], 300, {"data": "dots", "split": split})
        for part, split in ((train, "train"), (held_out, "validation"))
    ]
    unseen = report.HeldOut(references[1], lambda shape: iter([train[:100], train[100:]]))
    rows = [subject_of(images_of(generator, 200)), subject_of(train[50:250])]
    report.report(DETECTOR, references[0], rows, tmp_path, {"python": "3"}, unseen)
    out = capsys.readouterr().out
    assert (
        "copies, some: 100.0% of the samples are nearer" in out and "| dots, validation (300) | 300 |" in out
    )
    honest, copied, floor = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert honest["copies"]["share_nearer_than_95_percent_of_held_out"] < 0.12
    assert copied["copies"]["median_distance"] == 0 and floor["split"] == "validation"
    picture = np.asarray(Image.open(tmp_path / "nearest_2.png"))
    above, below = picture[2:6], picture[8:12]
    np.testing.assert_array_equal(above, below)  # the very images
    assert above[:, 2:6].std() > 0 and (tmp_path / "nearest_1.png").exists()


@pytest.mark.slow
def test_averages_of_several_lengths_make_one_table(home, capsys):
    run, plain = write_snapshots(write_run(home / "run")), RunFolder(home / "plain")
    plain.write_config(run.config())
    write_arrays(plain.weights(300), reconstruct(run, 0.07).arrays)
    batch = np.random.default_rng(3).integers(0, 255, (30, 16, 16, 3), np.uint8)
    write_samples(home / "reference.npz", [batch], batch.shape, None)
    flags = {"steps": "3", "num_samples": 12, "reference": str(home / "reference.npz")}
    status, out = evaluate(capsys, run_dir=str(run), ema=["0.05", "0.07"], out=str(home / "out"), **flags)
    assert status == 0 and "note: " not in out.replace("note: 12 images", "").replace(
        "note: the detector", ""
    ), out
    assert f"| {run}, length 0.05 | 12 |" in out and f"| {run}, length 0.07 | 12 |" in out
    assert os.listdir(home / "out") == ["evaluation.json"]
    assert evaluate(capsys, run_dir=str(plain), out=str(home / "plain_out"), **flags)[0] == 0
    rows, (alone,) = (
        json.loads((home / name / "evaluation.json").read_text())["results"] for name in ("out", "plain_out")
    )
    label = "FD-efficientnet_lite0"
    assert [row["origin"][0]["ema_length"] for row in rows] == [0.05, 0.07]
    # The second length is that of the second row's weights, whatever was drawn before it.
    assert rows[1][label] == alone[label] != rows[0][label]
    for lengths, message in (
        (["0.05", "0.5"], "length 0.5: use a length of"),
        (["0.02"], "a length nearer to"),
    ):
        status, text = evaluate(capsys, run_dir=str(run), ema=lengths, out=str(home / "other"), **flags)
        assert status == 2 and message in text and len(text.strip().splitlines()) == 1
    assert not (home / "other").exists()


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_numbers(home):
    write_run(home / "run")
    command = [
        sys.executable, "main.py", "--mode=evaluate", f"--run_dir={home / 'run'}", "--strategy=cpu",
        "--steps=40", "--num_samples=48", "--sample_batch_size=4", f"--reference={home / 'reference.npz'}",
    ]  # fmt: skip
    batch = np.random.default_rng(3).integers(0, 255, (30, 16, 16, 3), np.uint8)
    write_samples(home / "reference.npz", [batch], batch.shape, None)
    killed = subprocess.Popen([*command, f"--out={home / 'out'}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    # Of 12 batches the features of 8 are there, and of those after them some images.
    while killed.poll() is None and not list((home / "out").glob(".unfinished-*/*_00000000.npz")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    outputs = [
        subprocess.run(
            [*command, f"--out={home / name}"], cwd=ROOT, check=True, stdout=subprocess.PIPE
        ).stdout
        for name in ("out", "straight")
    ]
    assert b"1 of 2 parts are done already" in outputs[0] and b"already" not in outputs[1]
    found = [json.loads((home / name / "evaluation.json").read_text()) for name in ("out", "straight")]
    assert found[0] == found[1] and found[0]["results"][0]["sampling"]["steps"] == [40]
    assert os.listdir(home / "out") == ["evaluation.json"]
