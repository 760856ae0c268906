"""Whole evaluations of tiny runs and files: one table and one evaluation.json."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pdm_tf.averages import reconstruct
from pdm_tf.data import find_dataset, labelled_batches
from pdm_tf.errors import UserError
from pdm_tf.evaluation import references
from pdm_tf.evaluation.evaluate import Drawing, compare, find_reference, measure_likelihood
from pdm_tf.images import write_samples
from pdm_tf.models import Model
from pdm_tf.run import RunFolder
from pdm_tf.weights import write_arrays
from tests.evaluation.test_report import DETECTOR
from tests.tiny_runs import tiny_config, write_run, write_snapshots

ROOT = Path(__file__).parent.parent.parent
STEPS = {"sampling__steps": (2,)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(references, "CACHE", tmp_path / "cache")


@pytest.fixture
def reference(tmp_path):
    return write_images(tmp_path / "reference.npz", 30, seed=3)


def write_images(path, count, seed):
    batch = np.random.default_rng(seed).integers(0, 255, (count, 16, 16, 3), np.uint8)
    write_samples(path, [batch], batch.shape, None)
    return str(path)


def nothing():
    raise AssertionError("no data set is needed")


def results(out):
    return json.loads((out / "evaluation.json").read_text())["results"]


def test_a_reference_is_a_file_or_a_split(cache, tmp_path, monkeypatch, capsys):
    info = find_dataset("emoji64", "data")
    with pytest.raises(UserError, match=r"reference tset: .* emoji64 has the splits train, validation"):
        find_reference(DETECTOR, "tset", lambda: info)
    found, check = find_reference(DETECTOR, "validation", lambda: info)
    assert found.count == 95 and "no data set's training split" in check
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "validation.npz", 12, seed=1)
    (tmp_path / "validation.npz").rename("validation")
    find_reference(DETECTOR, "validation", nothing)
    assert "note: the reference is the file or folder ./validation, and no split" in capsys.readouterr().out
    _, check = find_reference(DETECTOR, "train", lambda: info)
    assert check.held_out.count == 95
    images = np.concatenate([images for images, _ in labelled_batches(info, "train", 256)])
    np.testing.assert_array_equal(check.train_image(300), images[300])


def test_models_and_files_make_one_table_with_labels_as_the_data_has_them(tmp_path, reference, capsys):
    model = Model.from_folders(write_run(tmp_path / "run", tiny_config(**STEPS)))
    out = tmp_path / "out"
    files = [reference, write_images(tmp_path / "other.npz", 12, seed=1)]
    compare(out, DETECTOR, reference, nothing, sample_paths=files, models=[model], drawing=Drawing(count=12))
    of_file, other, of_model = results(out)
    assert [row["title"] for row in (of_file, of_model)] == [reference, "run"]
    assert abs(of_file["metrics"]["FD-colour"]["value"]) < 1e-9 < other["metrics"]["FD-colour"]["value"]
    assert "copies: not looked for, because the reference is no data set's" in capsys.readouterr().out
    assert of_model["digest"] == model.digest and "digest" not in of_file
    assert os.listdir(out) == ["evaluation.json"]
    # A file has no classes: each gets as many; named ones come in turn.
    assert of_model["label_counts"] == [4, 4, 4] and of_model["labels"] == "equal shares"
    named = Drawing(count=12, labels=[2, 2, 0])
    compare(tmp_path / "named", DETECTOR, reference, nothing, models=[model], drawing=named)
    (row,) = results(tmp_path / "named")
    assert row["label_counts"] == [4, 0, 8] and row["labels"] == "in turn"


def test_averages_of_several_lengths_make_one_table(tmp_path, reference):
    run = write_snapshots(write_run(tmp_path / "run", tiny_config(**STEPS)))
    plain = RunFolder(tmp_path / "plain")
    plain.write_config(run.config())
    write_arrays(plain.weights(300), reconstruct(run, 0.07).arrays())
    drawing = Drawing(count=12, ema_lengths=[0.05, 0.07])
    model = Model.from_folders(run.path)
    compare(tmp_path / "out", DETECTOR, reference, nothing, models=[model], drawing=drawing)
    first, second = results(tmp_path / "out")
    assert [first["title"], second["title"]] == ["run, length 0.05", "run, length 0.07"]
    compare(
        tmp_path / "plain_out",
        DETECTOR,
        reference,
        nothing,
        models=[Model.from_folders(plain.path)],
        drawing=dataclasses.replace(drawing, ema_lengths=()),
    )
    (alone,) = results(tmp_path / "plain_out")
    # The second length is that of the second row's weights, whatever was drawn before it.
    assert second["metrics"] == alone["metrics"] != first["metrics"]
    assert second["digest"] == alone["digest"] != first["digest"]
    with pytest.raises(UserError, match=r"gone\.npz"):
        compare(tmp_path / "other", DETECTOR, reference, nothing, sample_paths=["gone.npz"])
    with pytest.raises(UserError, match=r"length 0\.5: use a length of"):
        wrong = dataclasses.replace(drawing, ema_lengths=[0.05, 0.5])
        compare(tmp_path / "other", DETECTOR, reference, nothing, models=[model], drawing=wrong)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_numbers(tmp_path, reference):
    write_run(tmp_path / "run")
    flags = ["--strategy=cpu", "--steps=40", "--num_samples=48", "--sample_batch_size=4"]
    command = [sys.executable, "main.py", "--mode=evaluate", f"--run_dir={tmp_path / 'run'}", *flags]
    command.append(f"--reference={reference}")
    killed = subprocess.Popen([*command, f"--out={tmp_path / 'out'}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    while killed.poll() is None and not list((tmp_path / "out").glob(".unfinished-*/*_00000028.npz")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    outputs = [
        subprocess.run(
            [*command, f"--out={tmp_path / name}"], cwd=ROOT, check=True, stdout=subprocess.PIPE
        ).stdout
        for name in ("out", "straight")
    ]
    assert b" of 12 batches are done already" in outputs[0] and b"already" not in outputs[1]
    assert results(tmp_path / "out") == results(tmp_path / "straight")
    assert os.listdir(tmp_path / "out") == ["evaluation.json"]


def test_the_likelihood_of_a_run_is_measured_on_held_out_images(tmp_path, capsys):
    config = tiny_config(data__image_shape=(64, 64, 3), data__num_classes=9, data__label_names=())
    model = Model.from_folders(write_run(tmp_path / "run", config))
    out = tmp_path / "out"
    measure_likelihood(out, model, find_dataset("emoji64", "data"), count=6, strata=4)
    found = json.loads((out / "likelihood.json").read_text())
    assert found["split"] == "validation" and found["count"] == 6 and found["digest"] == model.digest
    assert found["bits_per_dim"]["value"] > 0 and found["variance"] == "learned"
    assert os.listdir(out) == ["likelihood.json"]
    assert f"| bits/dim | {found['bits_per_dim']['value']:.4f} |" in capsys.readouterr().out
