"""The table of samplers: what is measured, and what is printed."""

import sys

import numpy as np
import tensorflow as tf

from benchmarks import samplers
from benchmarks.samplers import main, measure, settings_of
from pdm_tf.errors import run
from pdm_tf.evaluation.features import Detector
from pdm_tf.evaluation.metrics import Comparison
from pdm_tf.evaluation.references import of_images
from tests.fakes import FakeDenoiser
from tests.tiny_runs import tiny_config, write_run


def colours(images):
    """A detector of 3 features: the mean colour."""
    return images.astype(np.float32).mean((1, 2)) / 255, None, None


DETECTOR = Detector("colour", "0" * 64, "none", {"frechet": "FD-colour", "kernel": "KD-colour"}, colours)


def test_samples_of_each_seed_are_measured_with_their_own_labels():
    """A denoiser that paints each image in the grey of its label, against images of the very greys."""
    denoiser = FakeDenoiser(lambda z, t, labels: 0 * z + tf.cast(labels, z.dtype)[:, None, None, None] / 4)
    labels = np.array([0, 1, 2, 0, 1], np.int32)
    settings = settings_of("unipc/logsnr", 3, 1.0, tiny_config())
    shape = denoiser.image_shape

    def greys(of_labels):
        levels = np.round((np.array(of_labels) / 4 + 1) * 127.5).astype(np.uint8)
        return np.ones((len(of_labels), *shape), np.uint8) * levels[:, None, None, None]

    found = {}
    for name, of_labels in (("same", labels), ("others", [0, 0, 0, 0, 2])):
        comparison = Comparison(DETECTOR, of_images(DETECTOR, [greys(of_labels)], 5, "greys", {}))
        line = measure(denoiser, settings, labels, comparison, 2, seeds=2)
        found[name] = line["distances"]["FD-colour"]
    assert np.allclose(found["same"], 0, atol=1e-4) and min(found["others"]) > 1e-3
    assert len(line["distances"]["KD-colour"]) == 2
    assert line["seconds_per_image"] > 0 and line["num_images"] == 5
    assert (line["sampler"], line["spacing"], line["steps"]) == ("unipc", "logsnr", (3,))


def test_the_table_has_the_held_out_images_and_a_row_for_each_sampler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(samplers, "load_detector", lambda: DETECTOR)
    monkeypatch.setattr("pdm_tf.evaluation.references.CACHE", tmp_path)
    config = tiny_config(data__image_shape=(64, 64, 3), data__num_classes=9, data__label_names=())
    write_run(tmp_path / "run", config)
    arguments = ["--samplers=ddim,heun", "--steps=2", "--num_images=4", "--batch_size=4", "--seeds=2"]
    monkeypatch.setattr(sys, "argv", ["samplers", f"--run_dir={tmp_path / 'run'}", *arguments])
    assert run(main) == 0
    header, _, floor, *rows = capsys.readouterr().out.strip().splitlines()
    assert header == "| sampler | steps | passes | seconds an image | FD-colour | KD-colour |"
    assert floor.startswith("| emoji64, validation (95) |")
    assert [row.split(" | ")[:3] for row in rows] == [["| ddim", "2", "2"], ["| heun", "2", "3"]]
    assert all(len(row.split("|")) == len(header.split("|")) for row in (floor, *rows))
