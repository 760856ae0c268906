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
from absl.testing import flagsaver

import main
from flags.definitions import FLAGS
from pdm_tf.evaluation import report
from pdm_tf.evaluation.distances import Moments
from pdm_tf.evaluation.features import Detector, Features, extract
from pdm_tf.evaluation.references import of_images
from pdm_tf.images import write_samples
from tests.tiny_runs import write_run

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
    same, shifted = (
        report.measure(DETECTOR, reference, extract(DETECTOR, [images_of(generator, 300, shift)]))
        for shift in (0, 50)
    )
    assert same["FD-colour"] < 0.01 < shifted["FD-colour"] and shifted["KD-colour"] > 10 * same["KD-colour"]
    assert 0 < shifted["FD-colour error"] < shifted["FD-colour"] and same["precision"] > shifted["precision"]
    text = report.table([("a", 300, same), ("b", 300, shifted)])
    assert text.splitlines()[0].startswith("| images | N | FD-colour | KD-colour | precision | recall")
    assert f"{shifted['FD-colour']:.4g} ± {shifted['FD-colour error']:.2g}" in text.splitlines()[3]


def test_copies_are_told_from_new_images_and_the_pairs_are_right():
    generator = np.random.default_rng(1)
    train, held_out, new = (images_of(generator, 500) for _ in range(3))
    references = [of_images(DETECTOR, [part], 500, {}) for part in (train, held_out)]
    honest = report.copies(means(new)[0], *references)
    copied = report.copies(means(train[40:140])[0], *references)
    assert honest["share_nearer_than_95_percent_of_held_out"] < 0.12
    assert copied["share_nearer_than_95_percent_of_held_out"] == 1 and copied["median_distance"] == 0
    pairs = zip(copied["closest_samples"], copied["their_training_images"])
    assert all(np.array_equal(train[40 + sample], train[place]) for sample, place in pairs)


def test_images_are_taken_by_their_place():
    images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2, 1)
    taken = report.take(iter([images[:4], images[4:7], images[7:]]), [9, 0, 4, 9])
    np.testing.assert_array_equal(taken, images[[9, 0, 4, 9]])


def test_few_images_are_warned_of():
    few = of_images(DETECTOR, [np.zeros((2, 4, 4, 3), np.uint8)], 2, {})
    assert any("few for 3 features" in note for note in report.warnings(DETECTOR, few, 500))
    many = few._replace(count=500, moments=Moments.of(np.eye(3)))
    assert report.warnings(DETECTOR, many, 500) == ["the detector is colour: these numbers are no FID"]
    inception = Detector("inception", "", "", {"frechet": "FID", "kernel": "KID"}, means)
    assert "published FIDs are of 50,000" in report.warnings(inception, many, 500)[0]
    assert report.warnings(inception, many, 50_000) == []
    assert report.measure(DETECTOR, many, Features(np.random.default_rng(0).random((5, 3)))).keys() == {
        "FD-colour"
    }


def evaluate(capsys, **flags) -> tuple[int, str]:
    """Exit status and output of one --mode=evaluate."""
    if not FLAGS.is_parsed():
        FLAGS(["main.py"])
    with flagsaver.flagsaver(**{"mode": "evaluate", "strategy": "cpu", **flags}):
        try:
            main.main(None)
            status = 0
        except SystemExit as exit:
            status = exit.code
    captured = capsys.readouterr()
    return status, captured.err if status else captured.out


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
    assert out.splitlines()[0].startswith(f"| images | N | {label}") and "no FID" in out
    for flags, message in (
        ({"samples": ["gone.npz"], "reference": reference}, "gone.npz"),
        ({"samples": samples, "reference": "tset"}, "has the splits"),
        ({"samples": samples, "detector": "resnet"}, "there is no detector 'resnet'"),
    ):
        status, text = evaluate(capsys, out=str(home / "other"), **flags)
        assert status == 2 and message in text and len(text.strip().splitlines()) == 1


def test_a_killed_evaluation_goes_on_to_the_same_numbers(home):
    write_run(home / "run")
    command = [
        sys.executable, "main.py", "--mode=evaluate", f"--run_dir={home / 'run'}", "--strategy=cpu",
        "--steps=40", "--num_samples=48", "--sample_batch_size=4", f"--reference={home / 'reference.npz'}",
    ]  # fmt: skip
    batch = np.random.default_rng(3).integers(0, 255, (30, 16, 16, 3), np.uint8)
    write_samples(home / "reference.npz", [batch], batch.shape, None)
    killed = subprocess.Popen([*command, f"--out={home / 'out'}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    while killed.poll() is None and len(list((home / "out").glob(".unfinished-*/batch_*.npy"))) < 3:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    outputs = [
        subprocess.run(
            [*command, f"--out={home / name}"], cwd=ROOT, check=True, stdout=subprocess.PIPE
        ).stdout
        for name in ("out", "straight")
    ]
    assert b"batches are done already" in outputs[0]
    found = [json.loads((home / name / "evaluation.json").read_text()) for name in ("out", "straight")]
    assert found[0] == found[1] and found[0]["results"][0]["sampling"]["steps"] == [40]
    assert os.listdir(home / "out") == ["evaluation.json"]
