"""Scores while a run goes on: what they are, which averages stay, kills, time."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from pdm_tf.errors import UserError
from pdm_tf.evaluation.distances import Moments, frechet_distance
from pdm_tf.evaluation.features import Detector, extract
from pdm_tf.evaluation.image_sets import shared_labels
from pdm_tf.evaluation.likelihood import Likelihood, held_out_batches
from pdm_tf.evaluation.references import of_split
from pdm_tf.run import RunFolder
from pdm_tf.training import loop, scoring
from pdm_tf.training.watch import Budget, Interrupted, Preview
from pdm_tf.weights import read_arrays
from tests.training.test_loop import CPU, INFO, config, lines, train

BITS = scoring.HeldOutBits._measure
SCORED = (
    "training.score_every=4", "training.score_images=10", "training.keep_best=true", "training.ema_lengths=",
)  # fmt: skip


def colours(images):
    """A detector of 3 features: the mean colour."""
    return images.astype(np.float32).mean((1, 2)) / 255, None, None


DETECTOR = Detector("colour", "0" * 64, "none", {"frechet": "FD-colour", "kernel": "KD-colour"}, colours)


@pytest.fixture(scope="module", autouse=True)
def quick(tmp_path_factory):
    """A detector that costs nothing, a cache of the module's own, and as much time as is asked for."""
    patch = pytest.MonkeyPatch()
    cache = tmp_path_factory.mktemp("cache")
    patch.setattr(scoring, "load_detector", lambda: DETECTOR)
    patch.setattr("pdm_tf.evaluation.references.CACHE", cache)
    patch.setattr(Budget, "allows", lambda self, seconds: True)
    patch.setattr(scoring.HeldOutBits, "_measure", lambda self: 1.0)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 12 steps, scored at 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, *SCORED)
    return folder


def scores(folder):
    series = RunFolder(folder).metrics()
    return {name: dict(series[f"validation/{name}"]) for name in ("FD-colour", "KD-colour")}


def best(folder):
    run = RunFolder(folder)
    return json.loads(run.best_note.read_text()), run.best_weights.read_bytes()


def test_a_score_is_the_distance_of_the_averages_samples(whole):
    found = scores(whole)["FD-colour"]
    assert list(found) == [4, 8, 12] and len(set(found.values())) == 3
    run, settings = RunFolder(whole), config(*SCORED)
    state = loop.restore(settings, run, CPU)
    assert state.step == 12
    drawn = Preview(state.model, state.ema, settings, INFO, CPU)
    reference = of_split(DETECTOR, INFO, "train", (64, 64, 3))
    labels = shared_labels(reference.label_counts, 10, 0)
    with state.ema.applied():
        images = drawn.batches(10, labels, lambda: None, "test")
        expected = frechet_distance(reference.moments, Moments.of(extract(DETECTOR, images).pooled))
    assert found[12] == pytest.approx(expected, rel=1e-6)


def test_bits_are_logged_beside_scores_with_what_they_took(whole):
    by_step = {line["step"]: line for line in lines(whole) if "validation/bits_per_dim" in line}
    assert {step: line["validation/bits_per_dim"] for step, line in by_step.items()} == {4: 1, 8: 1, 12: 1}
    for name in ("score_seconds", "bits_seconds"):
        assert [line["step"] for line in lines(whole) if line.get(name, -1) >= 0] == [4, 8, 12]


def test_bits_are_those_of_the_averages_on_held_out_images(whole):
    settings, run = config(*SCORED), RunFolder(whole)
    state = loop.restore(settings, run, CPU)
    drawn = Preview(state.model, state.ema, settings, INFO, CPU)
    made = scoring.HeldOutBits(settings, INFO, drawn, run, None, lambda: None)
    assert made.possible
    found = BITS(made)
    batches = held_out_batches(INFO, "validation", (64, 64, 3), 5, 10)
    with state.ema.applied():
        bits = Likelihood(state.model.denoiser)(batches, strata=16, progress=False)
    assert found == pytest.approx(bits.bits_per_dim.value, rel=1e-5) and bits.count == 10 and found > 0

    def stop_now():
        raise Interrupted(together=False)

    made.check = stop_now
    with pytest.raises(Interrupted):
        BITS(made)


@pytest.mark.parametrize("changed", [{}, {"image_shape": (None, None, 3)}, {"image_dtype": "uint16"}])
def test_images_that_are_not_of_8_bits_or_are_resized_have_no_bits(caplog, whole, changed):
    part = SimpleNamespace(denoiser=SimpleNamespace(t_start=0, t_stop=3))
    made = scoring.HeldOutBits(config(*SCORED), replace(INFO, **changed), part, RunFolder(whole), None, None)
    assert made.possible is (not changed) and ("or are resized" in caplog.text) is bool(changed)
    assert changed or made.strata == 2


def test_the_best_averages_stay(whole):
    found, note = scores(whole)["FD-colour"], best(whole)[0]
    step = int(min(found, key=found.get))
    assert note["step"] == step and note["FD-colour"] == found[step] and note["images"] == 10
    if step in (8, 12):  # whose averages are there as well
        kept, own = (
            read_arrays(path) for path in (RunFolder(whole).best_weights, RunFolder(whole).weights(step))
        )
        assert all(np.array_equal(kept[name], own[name]) for name in own)
    assert RunFolder(whole).newest_weights() == RunFolder(whole).weights(12)


@pytest.mark.parametrize(
    ("moment", "dies_at"),
    [
        ("weights", 4),
        pytest.param("note", 8, marks=pytest.mark.slow),
        *(
            pytest.param(*case, marks=pytest.mark.heavy)
            for case in (("before", 4), ("before", 8), ("weights", 8), ("note", 4))
        ),
    ],
)
def test_a_run_killed_in_a_score_comes_to_the_same(tmp_path, monkeypatch, whole, dies_at, moment):
    """Killed before it has drawn, before the note is written, or before the score is logged."""

    class Killed(BaseException):
        pass

    real = scoring.atomic_json

    def dying(path, values):
        if values["step"] == dies_at and moment == "weights":
            raise Killed
        real(path, values)
        if values["step"] == dies_at:
            raise Killed

    def dying_measure(self):
        if moment == "before" and dies_at in self.steps_seen:
            raise Killed
        return real_measure(self)

    real_measure, real_score = scoring.Scoring._measure, scoring.Scoring.score

    def noting(self, step):
        self.steps_seen = {step}
        real_score(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(scoring.Scoring, "score", noting)
        patch.setattr(scoring.Scoring, "_measure", dying_measure)
        if moment != "before":
            patch.setattr(scoring, "atomic_json", dying)
        try:
            train(tmp_path, *SCORED)
        except Killed:
            assert dies_at not in scores(tmp_path)["FD-colour"] if dies_at == 8 else True
    train(tmp_path, *SCORED)
    assert scores(tmp_path) == scores(whole) and best(tmp_path) == best(whole)


def test_a_note_that_is_not_of_the_weights_or_was_measured_otherwise_does_not_count(tmp_path, whole):
    run, settings = RunFolder(whole), config(*SCORED)
    state = loop.restore(settings, run, CPU)

    def read(settings):
        drawn = Preview(state.model, state.ema, settings, INFO, CPU)
        return scoring.Scoring(settings, INFO, drawn, run, None, lambda: None).best

    assert read(settings) == best(whole)[0]
    assert read(config(*SCORED, "training.score_images=12")) is None
    assert read(config(*SCORED, "sampling.steps=3")) is None
    weights, note = run.best_weights.read_bytes(), run.best_note.read_text()
    try:
        run.best_weights.write_bytes(weights + b"x")
        assert read(settings) is None
        run.best_weights.write_bytes(weights)
        run.best_note.write_text(note[:-20])
        assert read(settings) is None
    finally:
        run.best_weights.write_bytes(weights)
        run.best_note.write_text(note)


@pytest.mark.slow
def test_there_is_no_score_without_time_and_one_word_about_it(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr(Budget, "allows", lambda self, seconds: False)
    train(tmp_path, "training.score_every=4", "training.score_images=10", "training.ema_lengths=")
    unseen = {"validation/FD-colour", "validation/bits_per_dim", "score_seconds", "bits_seconds"}
    assert not any(unseen & set(line) for line in lines(tmp_path))
    for what in ("score", "bits"):
        word = f"no {what}, so that this takes no more than 5% of the time"
        assert sum(word in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["diffusion.t_stop=400"], "this network alone draws no images"),
        (["data.image_shape=64,64,4"], "images of 1 or 3 channels"),
    ],
)
def test_what_cannot_be_scored_is_said_and_trained_all_the_same(caplog, settings, message):
    asked = config(*SCORED, *settings)
    stop = asked.diffusion.t_stop
    denoiser = SimpleNamespace(t_start=0, t_stop=stop, schedule=range(1000))
    made = scoring.Scoring(asked, INFO, SimpleNamespace(denoiser=denoiser), None, None, None)
    assert not made.possible and message in caplog.text


@pytest.mark.slow
def test_a_signal_ends_a_score_and_leaves_nothing_of_it(tmp_path, monkeypatch):
    """SIGTERM in the middle of step 8's score: the run is stopped and, run again, makes it up."""
    real = scoring.extract

    def signalled(detector, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(detector, images)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "extract", signalled)
        with pytest.raises(loop.Stopped):
            train(tmp_path, *SCORED)
    assert not RunFolder(tmp_path).best_note.exists()
    train(tmp_path, *SCORED)
    assert list(scores(tmp_path)["FD-colour"]) == [4, 8, 12]


def test_keeping_the_best_needs_scores():
    with pytest.raises(UserError, match="say how often to score"):
        config("training.score_every=0", "training.keep_best=true")


PROGRAM = """
import sys
from tests.training import test_scoring as t
from pdm_tf.training import scoring
from pdm_tf.training.watch import Budget
scoring.load_detector = lambda: t.DETECTOR
Budget.allows = lambda self, seconds: True
t.train(sys.argv[1], *t.SCORED)
"""


@pytest.mark.slow
def test_a_real_process_killed_while_it_scores_keeps_the_same_best(tmp_path):
    def process(folder):
        home = {**os.environ, "HOME": str(tmp_path)}
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder)], env=home)

    assert process(tmp_path / "whole").wait() == 0
    killed, run = process(tmp_path / "killed"), RunFolder(tmp_path / "killed")
    while killed.poll() is None and not run.best_weights.exists():
        pass
    killed.kill()
    killed.wait()
    assert process(tmp_path / "killed").wait() == 0
    assert scores(tmp_path / "killed") == scores(tmp_path / "whole")
    assert best(tmp_path / "killed") == best(tmp_path / "whole")
