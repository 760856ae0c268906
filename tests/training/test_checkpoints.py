"""Checkpoints: whole or not there, damaged ones noticed, never a silent new start."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.run import RunFolder
from pdm_tf.training import checkpoints as module
from pdm_tf.training.checkpoints import Checkpoints
from pdm_tf.training.ema import ExponentialMovingAverage


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


class Run:
    """A state of one variable and its average, in a folder."""

    def __init__(self, folder, size=1000, more=None, **keep):
        self.weight = tf.Variable(np.zeros(size, np.float32), name="network/weight")
        self.ema = ExponentialMovingAverage([self.weight], decay=0.5, lengths=(0.1,))
        state = tf.train.Checkpoint(weight=self.weight, **(more or {}))
        self.folder = folder
        self.checkpoints = Checkpoints(RunFolder(folder), state, self.ema, **keep)

    def save(self, *steps):
        for step in steps:
            self.weight.assign(np.full(1000, step, np.float32))
            self.ema.averages[0][:] = step + 0.5
            self.checkpoints.save(step)

    def files(self):
        return sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())


def restored(folder):
    again = Run(folder)
    step = again.checkpoints.restore_newest()
    return step, float(again.weight[0]), float(again.ema.averages[0][0])


def test_a_run_of_any_name_is_restored(tmp_path):
    folder = tmp_path / r"lr[3e-4] bs=4,{a},*?\n ~ é 'x'"
    Run(folder).save(10, 20)
    assert restored(folder) == (20, 20.0, 20.5)


def test_a_full_disk_in_a_power_average_leaves_the_checkpoint_before_as_it_was(run, monkeypatch):
    run.save(10)
    before = run.files()

    def full(file, **arrays):
        if "length" in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        saved(file, **arrays)

    saved = np.savez
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(
        UserError, match=r"no space left on the disk of .*: free some and run the command again"
    ):
        run.save(20)
    assert run.files() == before and restored(run.folder) == (10, 10.0, 10.5)


@pytest.mark.parametrize("name", [".DS_Store", "desktop.ini"])
def test_files_of_a_desktop_beside_ours_do_no_harm(run, monkeypatch, name):
    state = run.checkpoints.state

    def write(prefix, options):
        Path(prefix).with_name(name).write_bytes(b"theirs")
        state.write(prefix)

    monkeypatch.setattr(run.checkpoints, "state", SimpleNamespace(write=write))
    run.save(10, 20)
    (run.folder / "checkpoints/step_00000010" / name).unlink()
    (run.folder / "checkpoints/step_00000020" / name).write_bytes(b"theirs now")
    for place in ("", "checkpoints", "ema", "checkpoints/step_00000020"):
        (run.folder / place / f"{name}2").write_bytes(b"")
    assert restored(run.folder) == (20, 20.0, 20.5)
    cut(run.folder / "checkpoints/step_00000020/state.index")
    assert restored(run.folder) == (10, 10.0, 10.5)


def test_only_the_newest_stay(run):
    run.save(10, 20, 30)
    names = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert names == {"step_00000020", "step_00000030"}
    assert {path.name for path in (run.folder / "ema").iterdir()} == {f"{name}.npz" for name in names}


def test_every_kth_stays_for_good(tmp_path):
    run = Run(tmp_path, keep=1, keep_every=20)
    run.save(10, 20, 30, 40, 50)
    names = sorted(path.name[-2:] for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["20", "40", "50"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


DAMAGE = [
    ("checkpoints/step_00000020/state.data-00000-of-00001", cut),
    ("checkpoints/step_00000020/state.data-00000-of-00001", flip),
    ("checkpoints/step_00000020/state.data-00000-of-00001", os.remove),
    ("checkpoints/step_00000020/state.index", empty),
    ("checkpoints/step_00000020/manifest.json", os.remove),
    ("ema/step_00000020.npz", flip),
    ("ema/step_00000020.npz", os.remove),
    ("checkpoints/step_00000020/length_0.1.npz", flip),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_a_damaged_newest_is_reported_and_the_one_before_it_is_used(run, name, damage, caplog):
    run.save(10, 20)
    damage(run.folder / name)
    assert restored(run.folder) == (10, 10.0, 10.5)
    (record,) = [r for r in caplog.records if "damaged" in r.getMessage()]
    assert "step_00000020" in record.getMessage() and os.path.basename(name) in record.getMessage()


def test_when_none_is_usable_it_stops_and_touches_nothing(run):
    run.save(10, 20)
    for step in (10, 20):
        cut(run.folder / f"checkpoints/step_{step:08d}/state.data-00000-of-00001")
    before = run.files()
    with pytest.raises(UserError, match=r"none of the 2 checkpoints .* is usable: restore them from a copy"):
        restored(run.folder)
    assert run.files() == before


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), tf.errors.ResourceExhaustedError(None, None, "")],
)
def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(run, monkeypatch, error):
    run.save(10)
    before = run.files()

    def full(prefix, options):
        Path(prefix).with_name("state.index").write_bytes(b"half")
        raise error

    monkeypatch.setattr(run.checkpoints, "state", SimpleNamespace(write=full))
    with pytest.raises(UserError, match=r"no space left on the disk .*: free some and run the command again"):
        run.save(20)
    assert run.files() == before
    assert restored(run.folder) == (10, 10.0, 10.5)


def test_a_kill_while_writing_leaves_the_checkpoint_before_as_it_was(run, monkeypatch):
    """Whatever is on the disk just before the rename is not believed, and the next start clears it."""
    run.save(10)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(module, "sync", killed)
        context.setattr(module, "remove_tree", lambda _: None)  # a killed process does not clean up
        with pytest.raises(KeyboardInterrupt):
            run.save(20)
    assert (run.folder / "checkpoints/.step_00000020.partial").is_dir()
    (run.folder / "ema/step_00000020.npz").write_bytes(b"that of the killed one")
    assert restored(run.folder) == (10, 10.0, 10.5)
    assert not [name for name in run.files() if "20" in name]
    run.save(20)
    assert restored(run.folder) == (20, 20.0, 20.5)


def test_a_damaged_checkpoint_ahead_does_not_count_among_those_to_keep(tmp_path):
    run = Run(tmp_path, keep=2)
    run.save(30, 40)
    cut(tmp_path / "checkpoints/step_00000040/state.index")
    assert restored(tmp_path)[0] == 30
    again = Run(tmp_path, keep=1)
    again.save(35)
    assert restored(tmp_path) == (35, 35.0, 35.5)


def test_weights_of_another_network_are_refused(run):
    run.save(10)
    other = ExponentialMovingAverage([tf.Variable(tf.zeros(3), name="network/other")], 0.5)
    with pytest.raises(UserError, match="holds the weights of another network"):
        other.load(run.folder / "ema/step_00000010.npz")
    other = ExponentialMovingAverage([tf.Variable(tf.zeros(3), name="network/weight")], 0.5)
    with pytest.raises(UserError, match=r"network/weight is \(1000,\), and the network's is \(3,\)"):
        other.load(run.folder / "ema/step_00000010.npz")


@pytest.mark.parametrize("other", [{"size": 3}, {"more": {"bias": tf.Variable(1.0)}}])
def test_a_checkpoint_of_another_structure_is_refused_in_one_line_and_kept(run, other):
    """It is whole, so the one before it is no help: other shapes, or variables that it does not have."""
    run.save(10, 20)
    before = run.files()
    with pytest.raises(UserError, match=r"step_00000020 is whole, and of another network or ") as error:
        Run(run.folder, **other).checkpoints.restore_newest()
    assert "\n" not in str(error.value) and run.files() == before
