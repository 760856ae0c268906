"""Scores while a run goes on: what they are, which averages are kept, kills."""

import contextlib
import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pdm_tf.errors import Stopped
from pdm_tf.evaluation.distances import Moments, frechet_distance
from pdm_tf.evaluation.features import Detector, extract
from pdm_tf.evaluation.likelihood import Likelihood, held_out_batches
from pdm_tf.evaluation.references import of_split
from pdm_tf.run import RunFolder
from pdm_tf.training import scoring
from pdm_tf.training.metrics import MetricsLog
from pdm_tf.training.periodic import Interrupted, preview_sampling
from tests.tiny_runs import tiny_denoiser
from tests.training.test_loop import CPU, INFO, config, train

SCORED = (
    "training.score_every=4", "training.score_images=10", "training.keep_best=true", "training.ema_lengths=",
)  # fmt: skip


def colours(images):
    """A detector of 3 features: the mean colour."""
    return images.astype(np.float32).mean((1, 2)) / 255, None, None


DETECTOR = Detector("colour", "0" * 64, "none", {"frechet": "FD-colour", "kernel": "KD-colour"}, colours)


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """A detector that costs nothing, and a cache of the module's own."""
    patch = pytest.MonkeyPatch()
    patch.setattr(scoring, "load_detector", lambda: DETECTOR)
    patch.setattr("pdm_tf.evaluation.references.CACHE", tmp_path_factory.mktemp("cache"))
    yield
    patch.undo()


BRIGHTNESS = {4: 0, 8: 190, 12: 255}  # of the samples of a step


class Averages:
    """A stand-in: the averages of a step are its number."""

    step = 0
    applied = contextlib.nullcontext

    def save(self, path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(self.step))


class Samples:
    """A stand-in for previews: at each step pictures of another colour, of step 8 that of the data."""

    denoiser, strategy, batch_size = SimpleNamespace(t_start=0, t_stop=1000), CPU, 5

    def __init__(self, settings):
        self.sampling, self.ema, self.labels = preview_sampling(settings), Averages(), None

    def batches(self, count, labels, title, check):
        check()
        self.labels = labels
        noise = np.random.default_rng(0).integers(-20, 20, (count, 64, 64, 3))
        yield np.clip(BRIGHTNESS[self.ema.step] + noise, 0, 255).astype(np.uint8)


def made(folder, *settings, check=lambda: None, kind=scoring.SampleScores):
    asked = config(*SCORED, *settings)
    return kind(asked, INFO, Samples(asked), MetricsLog(RunFolder(folder), 0, 8), check)


def measure(folder, steps, *settings):
    """Scores some steps, as a run does that may have been killed before."""
    scores = made(folder, *settings)
    for step in steps:
        scores.previews.ema.step = step
        if not scores.done(step):
            scores.measure(step)
    return scores


def values(folder):
    return dict(RunFolder(folder).metrics()["validation/FD-colour"].tolist())


def best(folder):
    run = RunFolder(folder)
    return json.loads(run.best_note.read_text()), run.best_weights.read_text()


def test_a_score_is_the_distance_of_samples_in_the_shares_of_the_datas_classes(tmp_path):
    scores = measure(tmp_path, (4,))
    reference = of_split(DETECTOR, INFO, "train", (64, 64, 3))
    images = list(scores.previews.batches(10, scores.previews.labels, "", lambda: None))
    expected = frechet_distance(reference.moments, Moments.of(extract(DETECTOR, images).pooled))
    assert values(tmp_path) == {4: pytest.approx(expected, rel=1e-6)}
    assert len(scores.previews.labels) == 10 and len(set(scores.previews.labels)) > 3


def test_the_best_averages_stay(tmp_path):
    measure(tmp_path, (4, 8, 12))
    note, weights = best(tmp_path)
    found = values(tmp_path)
    assert min(found, key=found.get) == note["step"] == 8 and weights == "8"
    assert note["FD-colour"] == found[8] and note["images"] == 10


@pytest.mark.parametrize("moment", ["weights", "note"])
@pytest.mark.parametrize("step", [4, 8])
def test_a_run_killed_in_a_score_comes_to_the_same(tmp_path, monkeypatch, moment, step):
    """Killed before the note is written, or before the score is logged."""

    class Killed(BaseException):
        pass

    real = scoring.atomic_json

    def dying(path, note):
        if note["step"] == step and moment == "weights":
            raise Killed
        real(path, note)
        if note["step"] == step:
            raise Killed

    measure(tmp_path / "whole", (4, 8, 12))
    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(scoring, "atomic_json", dying)
        measure(tmp_path / "killed", (4, 8, 12))
    measure(tmp_path / "killed", (4, 8, 12))
    assert values(tmp_path / "killed") == values(tmp_path / "whole")
    assert best(tmp_path / "killed") == best(tmp_path / "whole")


def test_a_note_that_is_not_of_the_weights_or_was_measured_otherwise_does_not_count(tmp_path):
    measure(tmp_path, (4, 8))
    run = RunFolder(tmp_path)
    assert made(tmp_path).best == best(tmp_path)[0]
    assert made(tmp_path, "training.score_images=12").best is None
    assert made(tmp_path, "sampling.steps=3").best is None
    weights, note = run.best_weights.read_bytes(), run.best_note.read_text()
    run.best_weights.write_bytes(weights + b"x")
    assert made(tmp_path).best is None
    run.best_weights.write_bytes(weights)
    run.best_note.write_text(note[:-20])
    assert made(tmp_path).best is None


def interrupt():
    raise Interrupted


def test_a_signal_ends_a_score_and_leaves_nothing_of_it(tmp_path):
    with pytest.raises(Interrupted):
        made(tmp_path, check=interrupt).measure(4)
    assert not RunFolder(tmp_path).best_note.exists() and not RunFolder(tmp_path).metrics()


def test_bits_are_those_of_the_averages_on_held_out_images(tmp_path, monkeypatch):
    monkeypatch.setattr(Samples, "denoiser", tiny_denoiser(config(*SCORED)))
    bits = made(tmp_path, kind=scoring.HeldOutBits)
    bits.measure(4)
    batches = held_out_batches(INFO, "validation", (64, 64, 3), 5, 10)
    expected = Likelihood(bits.previews.denoiser)(batches, strata=16)
    found = RunFolder(tmp_path).metrics()["validation/bits_per_dim"]
    assert found.tolist() == [[4, pytest.approx(expected.bits_per_dim.value, rel=1e-5)]]
    assert bits.done(4) and not bits.done(8) and expected.count == 10
    bits.check = interrupt
    with pytest.raises(Interrupted):
        bits.measure(8)


@pytest.mark.parametrize(("kind", "changed", "words"), [
    (scoring.HeldOutBits, {"image_shape": (None, None, 3)}, "or are resized"),
    (scoring.HeldOutBits, {"num_examples": {"train": 9}}, "no held-out split"),
    (scoring.SampleScores, {}, ""),
    (scoring.SampleScores, {"num_examples": {"train": 3}}, "4 training images at least"),
    (scoring.SampleScores, {"diffusion.t_stop": 400}, "this network alone draws no images"),
])  # fmt: skip
def test_what_cannot_be_measured_has_a_reason(kind, changed, words):
    settings = {key: value for key, value in changed.items() if "." in key}
    asked = config(*SCORED).replace(settings)
    info = replace(INFO, **{key: value for key, value in changed.items() if "." not in key})
    denoiser = SimpleNamespace(t_start=0, t_stop=asked.diffusion.t_stop, schedule=range(1000))
    problem = kind.problem(asked, info, denoiser)
    assert words in problem and bool(problem) == bool(words)


@pytest.mark.slow
def test_a_run_is_scored_and_a_signal_in_a_score_is_caught_up_with(tmp_path, monkeypatch):
    """SIGTERM in the middle of step 4's score: the run is stopped and, run again, makes up for it."""
    real = scoring.extract

    def signalled(detector, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(detector, images)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "extract", signalled)
        with pytest.raises(Stopped):
            train(tmp_path, *SCORED)
    assert not RunFolder(tmp_path).best_note.exists()
    train(tmp_path, *SCORED)
    assert list(values(tmp_path)) == [4, 8, 12]
    assert RunFolder(tmp_path).metrics()["validation/bits_per_dim"][:, 0].tolist() == [4, 8, 12]
    assert RunFolder(tmp_path).newest_weights() == RunFolder(tmp_path).weights(12)
