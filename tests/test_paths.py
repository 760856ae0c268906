"""Users' text -> paths; runs in folders of any name."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf import paths
from pdm_tf.errors import UserError
from pdm_tf.paths import as_path, is_remote
from pdm_tf.run import RunFolder
from tests.data.fixtures import numbered_dataset
from tests.in_process import run_mode

# Every character that a shell, a glob, a list or an address gives a meaning, and letters of other alphabets.
ODD = r"lr[3e-4] bs=4,{a},*?\n ~ é 'x'"
TINY = [
    "training.batch_size=4", "training.log_every=1", "training.eval_batches=1", "training.sample_images=1",
    "training.checkpoint_every=1", "training.ema_every=1", "sampling.steps=1", "network.base_channels=32",
    "network.channel_multipliers=1", "network.blocks_per_level=1", "network.attention_resolutions=",
    "network.head_channels=32", "network.patch_size=2", "training.ema_lengths=0.05,0.1",
]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["a", "a,b=c", ODD, "/x/[y]", "gs", "./gs:/x", "a:b", "C:", ".", "../~", "a//b"]
)
def test_a_name_of_this_machine_is_taken_as_it_is(text):
    assert as_path(text) == Path(text) and not is_remote(as_path(text))


def test_tilde_is_home_and_a_path_goes_through(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert as_path("~") == Path("/home/ada") and as_path("~/x/~") == Path("/home/ada/x/~")
    assert as_path("file:///x/y") == Path("/x/y")
    assert as_path(Path("~/x")) == Path("~/x")
    assert as_path("~nobody_of_that_name/x") == Path("~nobody_of_that_name/x")  # as a shell has it


@pytest.mark.parametrize(
    "text", ["foo://x/y", "s3://bucket/x", "gs:/bucket/x", "gs:///x", "file://host/x", "http://x/y"]
)
def test_an_address_that_nobody_opens_is_refused(text):
    with pytest.raises(UserError, match=r"is no address that can be opened here: write .*gs://BUCKET/NAME"):
        as_path(text)


def test_a_bucket_that_does_not_answer_is_not_waited_for(monkeypatch):
    """And a signal is heard meanwhile, which TensorFlow's own wait of minutes would keep from Python."""
    monkeypatch.setattr(tf.io.gfile, "exists", lambda _: time.sleep(3600))
    monkeypatch.setattr(paths, "ANSWER_SECONDS", 0.2)
    with pytest.raises(
        UserError, match=r"gs://silent cannot be reached \(no answer within 0.2 s\): check its"
    ):
        as_path("gs://silent/x")
    monkeypatch.setattr(paths, "ANSWER_SECONDS", 60)
    # What a shell starts in the background ignores this signal, and so would a suite started there.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT]).start()
            as_path("gs://silent/x")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("words", [
    "train --dataset=folder:foo://x",
    "export --out=foo://x",
])  # fmt: skip
def test_so_in_every_flag_before_any_compute(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mode, *flags = words.split()
    status, error = run_mode(capsys, mode=mode, **dict(flag[2:].split("=", 1) for flag in flags))
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "is no address that can be opened here" in lines[0]
    assert not os.listdir(tmp_path)


def test_a_local_folder_that_epath_would_take_for_a_bucket_is_one_of_this_machine(monkeypatch):
    for text in ("/gs/x/y", "//s3/x", "/az", "/hf/x"):
        path = as_path(text)
        assert not is_remote(path / "z") and os.path.normpath(path).lstrip("/") == text.lstrip("/")
    assert as_path("/gsx/y") == Path("/gsx/y") and not is_remote(as_path(Path("/gs/x")))


@pytest.mark.slow
def test_a_run_of_any_name_trains_resumes_samples_and_exports(tmp_path, capsys, monkeypatch):
    """On data of any name, which are moved on the way; and the export loads."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run, data, moved = tmp_path / ODD, tmp_path / f"{ODD}, data", tmp_path / "moved"
    numbered_dataset(data, [8])

    def train(dataset, run_dir, steps):
        return run_mode(
            capsys, mode="train", strategy="cpu", set=TINY, dataset=f"folder:{dataset}", run_dir=run_dir,
            train_steps=steps,
        )  # fmt: skip

    assert train(data.name, ODD, 1)[0] == 0
    data.rename(moved)
    numbered_dataset(data, [9])
    status, error = train(data, ODD, 2)
    assert status == 2 and "holds a run with other settings: data.dataset (folder:" in error
    status, said = train("./moved//", f"~/{ODD}", 2)
    assert status == 0 and f"resuming {run} at step 1 of 2" in said
    assert RunFolder(run).config().data.dataset == "folder:./moved//"

    draw = {"mode": "sample", "strategy": "cpu", "num_samples": 2, "sample_batch_size": 2}
    assert run_mode(capsys, run_dir=f"{ODD}/", ema_length=0.07, **draw)[0] == 0
    with np.load(run / "samples" / "samples.npz") as file:
        assert file["arr_0"].shape == (2, 8, 6, 3)
    assert run_mode(capsys, mode="export", run_dir=ODD)[0] == 0
    (exported,) = (tmp_path / "exports").iterdir()
    sample = tf.saved_model.load(str(exported)).signatures["sample"]
    numbers = {"seed": tf.constant(0), "labels": tf.constant([0, 0]), "guidance": tf.constant(1.0)}
    assert sample(**numbers)["images"].shape == (2, 8, 6, 3)
    status, error = run_mode(capsys, mode="export", run_dir=ODD, out="ex[1]")
    assert status == 2 and "name a folder without [ ] * ? \\" in error
    # Libraries that are first used here may make their hidden folders in this home.
    made = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert made == {ODD, data.name, "moved", "exports"}
