"""The loop in this process: what a run folder holds, exact resume, stops, refusals."""

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf import data
from pdm_tf.config.fields import parse_settings, validate
from pdm_tf.config.presets import network_settings, preset
from pdm_tf.devices import Workers
from pdm_tf.errors import Stopped, UserError
from pdm_tf.run import RunFolder
from pdm_tf.training import loop
from pdm_tf.training.checkpoints import Checkpoints
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.periodic import HeldOutLosses, Previews
from pdm_tf.training.state import restore
from pdm_tf.weights import read_arrays, variable_names
from tests.data import fixtures
from tests.tiny_runs import tiny_denoiser

INFO = data.find_dataset("emoji64", "")
TINY = [
    "network.base_channels=32", "network.channel_multipliers=1", "network.attention_resolutions=",
    "network.head_channels=32", "network.blocks_per_level=1", "network.dropout=0.1", "training.batch_size=8",
    "training.steps=12", "training.log_every=3", "training.eval_every=6", "training.ema_every=2",
    "training.sample_every=100", "training.sample_images=2", "sampling.steps=2",
    "training.checkpoint_every=4", "training.precision=float32", "data.horizontal_flip=true",
    "optimizer.warmup_steps=4", "training.ema_lengths=0.05,0.1",
]  # fmt: skip
CPU = tf.distribute.get_strategy()
LENGTHS = (0.05, 0.1)
SNAPSHOTS = [f"ema/length_{length}/step_{step:08d}.npz" for length in LENGTHS for step in range(2, 13, 2)]
LAST = ["ema/step_00000012.npz", "checkpoints/step_00000012/state.data-00000-of-00001"]


def config(*settings):
    return validate(preset("emoji64").replace(parse_settings([*TINY, *settings])))


def train(folder, *settings, info=INFO):
    return loop.train(config(*settings), RunFolder(folder), info, CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 12 steps."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]


def assert_same_files(folder, whole, names):
    for name in names:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_run_folder_is_all_that_sampling_needs_and_holds_what_the_design_says(whole):
    names = {str(p.relative_to(whole)) for p in whole.rglob("*")}
    assert names >= {
        "config.json", "previews/step_00000012.png", "ema/step_00000012.npz", "ema/step_00000008.npz",
        "checkpoints/step_00000012", "checkpoints/step_00000008", "logs/metrics.jsonl",
    }  # fmt: skip
    assert "checkpoints/step_00000004" not in names and not any("partial" in name for name in names)
    assert RunFolder(whole).config() == config()
    assert any(path.name.startswith("events.out") for path in (whole / "logs").iterdir())
    assert not list(whole.rglob("*.pkl"))


def test_snapshots_of_averages_are_those_of_the_checkpoint(whole):
    assert {str(path.relative_to(whole)) for path in whole.glob("ema/length_*/*")} == set(SNAPSHOTS)
    for length in LENGTHS:
        names = [f"ema/length_{length}/step_00000012.npz", f"checkpoints/step_00000012/length_{length}.npz"]
        first, second = (read_arrays(whole / name) for name in names)
        assert all(np.array_equal(first[name], second[name]) for name in first) and len(first) > 10


def test_a_stopped_run_is_saved_before_anything_is_shown_and_comes_to_the_same_bits(
    whole, tmp_path, monkeypatch
):
    """A signal in step 4 stops it after step 5, where all is due; the same command makes up for it."""
    settings = ["training.log_every=5", "training.eval_every=5", "training.sample_every=5"]
    done = []

    def noting(cls, name):
        original = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda *args: done.append(name) or original(*args))

    for cls, name in ((Checkpoints, "save"), (HeldOutLosses, "measure"), (Previews, "grid")):
        noting(cls, name)
    update = ExponentialMovingAverage.update

    def signalling(self, number):
        update(self, number)
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as context, pytest.raises(Stopped) as stopped:
        context.setattr(ExponentialMovingAverage, "update", signalling)
        train(tmp_path, *settings, "training.checkpoint_every=100")
    assert str(stopped.value) == "stopped by SIGTERM at step 5, all saved: run the same command to go on"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert done == ["save"] and [path.name for path in tmp_path.glob("checkpoints/*")] == ["step_00000005"]
    assert [line["step"] for line in lines(tmp_path)] == [5] and not (tmp_path / "previews").exists()

    train(tmp_path, *settings, "training.checkpoint_every=5")
    # At step 10 all is due; at 12 what is due at the end.
    assert done[1:] == ["measure", "grid", "save", "measure", "grid", "save", "grid"]
    assert {line["step"] for line in lines(tmp_path) if "validation/loss" in line} == {5, 10}
    assert_same_files(tmp_path, whole, [*LAST, *SNAPSHOTS, "previews/step_00000012.png"])


def test_a_finished_run_started_again_draws_a_lost_picture_and_trains_no_more(whole, capsys):
    picture = whole / "previews/step_00000012.png"
    before, pixels = (
        {p: p.stat().st_mtime_ns for p in (whole / "checkpoints").rglob("*")},
        picture.read_bytes(),
    )
    picture.unlink()
    train(whole)
    assert {p: p.stat().st_mtime_ns for p in (whole / "checkpoints").rglob("*")} == before
    assert "at step 12 of 12" in capsys.readouterr().out and picture.read_bytes() == pixels


@pytest.mark.slow
def test_a_run_has_as_many_snapshots_as_it_is_asked_for_and_one_at_its_end(tmp_path, capsys):
    quick = ("training.steps=11", "training.ema_snapshots=2", "training.ema_lengths=0.2")
    train(tmp_path, *quick, "training.eval_every=300", "training.log_every=100")
    run = RunFolder(tmp_path)
    assert run.snapshot_steps(0.2) == [6, 11] and run.snapshot_steps(0.1) == []
    line = re.search(
        rf"averages of lengths 0.2: up to 2 x 1 snapshots in {tmp_path}/ema, (.*) GB each, (.*) GB in all\n",
        capsys.readouterr().out,
    )
    assert float(line[1]) == pytest.approx(os.path.getsize(run.snapshot(0.2, 11)) / 1e9, rel=0.05)
    assert float(line[2]) == pytest.approx(2 * float(line[1]), rel=0.01)


def test_more_steps_than_are_asked_for_are_refused(whole):
    with pytest.raises(UserError, match=r"has trained for 12 steps already, and training.steps=6: ask for"):
        train(whole, "training.steps=6")
    assert RunFolder(whole).config() == config()


@pytest.mark.slow
def test_a_full_disk_in_the_log_is_one_line_and_the_half_line_is_passed_over(tmp_path, monkeypatch):
    def full(*_):
        (tmp_path / "logs/metrics.jsonl").write_text('{"step": 3, "lo')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as context,
        pytest.raises(UserError, match=r"no space left on the disk of .*logs"),
    ):
        context.setattr(tf.summary, "scalar", full)
        train(tmp_path)
    train(tmp_path)
    assert (tmp_path / "logs/metrics.jsonl").read_text().startswith('{"step": 3, "lo\n{"step": 3, "loss": ')
    assert RunFolder(tmp_path).metrics()["loss"][:, 0].tolist() == [3, 6, 9, 12]


def test_averages_without_a_checkpoint_are_not_trained_over(whole, tmp_path):
    shutil.copytree(whole / "ema", tmp_path / "ema")
    with pytest.raises(UserError, match=r"no checkpoint to go on from: .* or delete .* to begin again"):
        restore(config(), RunFolder(tmp_path), CPU)


def test_a_warm_start_begins_with_the_other_runs_averages(whole, tmp_path):
    state = restore(config(f"training.warm_start={whole}", "diffusion.t_start=396"), RunFolder(tmp_path), CPU)
    theirs = read_arrays(whole / LAST[0])
    for name, average, variable in zip(
        variable_names(state.ema.variables), state.ema.averages, state.ema.variables
    ):
        np.testing.assert_array_equal(average, theirs[name])
        np.testing.assert_array_equal(variable, theirs[name])


def test_weights_of_other_classes_are_taken_as_far_as_they_fit(whole, tmp_path, capsys):
    """Nine classes there, two here."""
    two = (f"training.warm_start={whole}", "data.num_classes=2", "data.label_names=a,b")
    state = restore(config(*two), RunFolder(tmp_path), CPU)
    there = read_arrays(RunFolder(whole).newest_weights())
    ((name, average),) = [
        (name, average)
        for name, average in zip(variable_names(state.ema.variables), state.ema.averages)
        if not np.array_equal(there[name], average)
    ]
    assert name.endswith("embed_label/embeddings") and average.shape[0] == 3 and np.isfinite(average).all()
    width = average.shape[1]
    assert (
        f"without what does not fit: {name} ((10, {width}) there, (3, {width}) here)\n"
        in capsys.readouterr().out
    )


def test_the_weights_of_another_network_are_refused(whole, tmp_path):
    other = config(f"training.warm_start={whole}", "network.base_channels=64")
    with pytest.raises(UserError, match=r"^training.warm_start=.*the weights of another network: \d%"):
        restore(other, RunFolder(tmp_path), CPU)


def test_a_run_of_larger_grey_images_begins_with_a_smaller_ones_weights(whole, tmp_path, capsys):
    there = RunFolder(whole).config()
    (side, *_), patch_size = there.data.image_shape, there.network.patch_size
    own = config(
        f"training.warm_start={whole}", f"data.image_shape={2 * side},{2 * side},1",
        f"network.patch_size={2 * patch_size}",
    )  # fmt: skip
    state = restore(own, RunFolder(tmp_path), CPU)
    assert "what does not fit" not in capsys.readouterr().out
    averages = dict(zip(variable_names(state.ema.variables), state.ema.averages))
    before = read_arrays(RunFolder(whole).newest_weights())
    resized = [name for name in before if before[name].shape != averages[name].shape]
    assert all(3 * averages[n].size == 4 * before[n].size for n in resized) and 2 < len(resized) < 9
    for name in before.keys() - set(resized):
        np.testing.assert_array_equal(averages[name], before[name])


def test_after_ten_steps_it_says_how_long_all_take(monkeypatch):
    now = iter([7.0, 27.0])
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(now))
    vit = preset("avatars64")
    vit = vit.replace({**network_settings("vit", vit), "training.steps": 1000, "training.batch_size": 16})
    vit = vit.replace({"training.warm_start": "avatars64"})
    pace = loop.Pace(vit, 300)
    lines = {step: line for step in range(301, 400) if (line := pace.text(step))}
    assert lines.keys() == {311} and lines[311] == (
        "a step takes 2 s here: all 1,000 take 33 minutes; expect flat shapes after 8 minutes, things that "
        "one recognizes after 25 minutes, sharp pictures after 3.1 hours"
    )


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another process trains in .*: wait for it"):
            train(tmp_path)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"batch_size=32 .* 6 replicas x .*: the nearest that does is 30"):
        loop.check_batch(config("training.batch_size=32"), 6)
    with pytest.raises(UserError, match=r"2 replicas x training.grad_accum=8: the nearest that does is 16"):
        loop.check_batch(config("training.grad_accum=8"), 2)
    loop.check_batch(config("training.grad_accum=4"), 2)


def test_splits_without_labels_are_found_at_the_start(tmp_path):
    image = fixtures.encode(fixtures.natural_image(0, 64, 64))
    sets = {}
    for split, label in (("train", 3), ("test", -1)):
        shard = [fixtures.example(image, label)] * 8
        sets[split] = fixtures.write_shards(tmp_path / split, [shard], classes=9, shape=(64, 64, 3))
    splits = {split: found.splits["train"] for split, found in sets.items()}
    info = dataclasses.replace(sets["train"], splits=splits, num_examples={"train": 8, "test": 8})
    loop.check_labels(config(), info)
    state = SimpleNamespace(
        model=SimpleNamespace(network=tiny_denoiser().network), ema=SimpleNamespace(share_of_first=float)
    )
    text = loop.summary(config("training.ema_lengths="), RunFolder(tmp_path), info, state)
    assert "the split test of made is unlabelled: it is measured with the null label" in text
    with pytest.raises(UserError, match=r"train of made is unlabelled: set network.class_conditioning=none"):
        loop.check_labels(config(), sets["test"])
    loop.check_labels(config("network.class_conditioning=none"), sets["test"])


@pytest.mark.slow
def test_gradients_that_stay_infinite_stop_the_run_at_a_good_checkpoint(tmp_path):
    """A rate of 1e30 gives one step of finite weights, and no finite gradient after it."""
    with pytest.raises(UserError) as error:
        train(
            tmp_path, "training.log_every=1", "training.max_bad_steps=5", "training.checkpoint_every=2",
            "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "training.eval_every=100",
        )  # fmt: skip
    message = str(error.value)
    assert "\n" not in message and "start from them with training.warm_start in a new run folder" in message
    assert message.startswith(
        "5 steps in a row had a gradient that is not finite, from step 2 on, beginning at"
    )
    assert [line["skipped_steps"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]
    last = sorted(tmp_path.glob("checkpoints/step_*"))[-1]
    reader = tf.train.load_checkpoint(str(last / "state"))
    saved = [reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in n]
    averages = read_arrays(tmp_path / f"ema/{last.name}.npz").values()
    assert len(saved) > 50 and all(np.isfinite(value).all() for value in [*saved, *averages])


def test_a_worker_that_is_not_where_the_others_are_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "restore", lambda *_: SimpleNamespace(step=0))
    monkeypatch.setattr(Workers, "same", lambda self, *numbers: numbers != (0,))
    with pytest.raises(UserError, match="this worker would go on from step 0 and another from elsewhere"):
        train(tmp_path)
    monkeypatch.setattr(Workers, "same", lambda self, *numbers: False)
    with pytest.raises(UserError, match="the workers have different settings"):
        train(tmp_path)


@pytest.mark.slow
def test_a_signal_in_a_preview_ends_it_and_it_is_drawn_when_the_run_goes_on(whole, tmp_path, monkeypatch):
    settings = ["training.sample_every=5", "training.checkpoint_every=100"]
    looks, original = [], loop.Signals.check

    def looking(self):
        looks.append(None)
        if len(looks) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self)

    with monkeypatch.context() as context, pytest.raises(Stopped, match=r"by SIGTERM at step 5, all saved"):
        context.setattr(loop.Signals, "check", looking)
        train(tmp_path, *settings)
    assert len(looks) == 2 and not (tmp_path / "previews").exists()
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["step_00000005"]
    train(tmp_path, *settings)
    assert_same_files(tmp_path, whole, [*LAST, "previews/step_00000012.png"])
    assert (tmp_path / "previews/step_00000005.png").exists()


@pytest.mark.slow
def test_when_the_minutes_are_over_all_is_saved_and_shown_and_the_run_goes_on(whole, tmp_path, capfd):
    run = RunFolder(tmp_path)
    assert [train(tmp_path, "training.minutes=1e-9") for _ in range(2)] == [1, 2]
    assert run.checkpoint_steps() == [1, 2] and run.preview(1).exists() and run.preview(2).exists()
    capfd.readouterr()
    train(tmp_path, "training.minutes=60")
    assert re.search(r"train, (1:00:00|5\d:\d\d) left: 12step", capfd.readouterr().err)
    assert_same_files(tmp_path, whole, LAST)
