"""The conversion engine: killed, resumed, out of disk, with unreadable images."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_tools import image_folder, verify
from data_tools.shards import Encoder, Item, Task, write_shard
from pdm_tf.atomic import sole_writer
from pdm_tf.data import describe_directory
from pdm_tf.errors import UserError
from tests.data import fixtures
from tests.data_tools.conversions import arguments, hashes, make_input


def numbers(directory):
    """The numbers of the images of a data set, in its order."""
    dataset = tfds.builder_from_directory(directory).as_dataset(split="train+validation")
    return [int(image[0, 0, 0]) << 8 | int(image[0, 0, 1]) for image in (e["image"].numpy() for e in dataset)]


def test_every_image_once_in_an_order_that_the_seed_decides(tmp_path):
    source = make_input(tmp_path)
    orders, files = {}, {}
    for seed, workers in (("0", "1"), ("0", "2"), ("1", "2")):
        output = tmp_path / f"{seed}{workers}" / "set"
        image_folder.main(arguments(source, output, "--seed", seed, "--workers", workers))
        orders[seed, workers], files[seed, workers] = numbers(output), hashes(output)
        assert sorted(orders[seed, workers]) == list(range(30))
    info = describe_directory(output)
    assert info.num_examples == {"train": 27, "validation": 3}
    sizes = [os.path.getsize(path) for path in info.splits["train"].shards]
    assert len(sizes) > 3 and max(sizes) < 0.012e6  # 10 kB is asked for
    assert files["0", "1"] == files["0", "2"] and len(files["0", "1"]) > 6
    assert orders["0", "1"] != orders["1", "2"] and orders["0", "1"] != list(range(30))


def processes_of_session(session):
    """Process ids of a session that still run (zombies do not)."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as file:
                state, _, _, of_session = file.read().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of_session) == session and state != "Z":
            found.append(int(entry))
    return found


def test_kill_9_and_run_again_gives_the_same_bytes(tmp_path):
    source = make_input(tmp_path, count=120, size=128)
    argv = arguments(source, tmp_path / "a" / "set", shard_mb="0.15")
    image_folder.main(arguments(source, tmp_path / "b" / "set", shard_mb="0.15"))
    whole = hashes(tmp_path / "b")
    process = subprocess.Popen(
        [sys.executable, "-m", "data_tools.image_folder", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for_shards(tmp_path / "a" / "set", 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = hashes(tmp_path / "a")
    assert "manifest.json" not in finished and set(whole) - set(finished)
    deadline = time.monotonic() + 20
    while processes_of_session(process.pid):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)
    # What a kill leaves, on whatever machine it was, goes with the folder that it lies in.
    (tmp_path / "a" / "set" / ".conversion" / ".shard.partial-elsewhere-1").touch()
    shards = [name for name in finished if name in whole]
    before = {name: (tmp_path / "a" / "set" / name).stat().st_mtime_ns for name in shards}
    image_folder.main(argv)
    assert hashes(tmp_path / "a") == whole
    redone = [name for name in shards if (tmp_path / "a" / "set" / name).stat().st_mtime_ns != before[name]]
    # At most the shards whose record was not written yet, one for each worker.
    assert len(redone) <= 2 < len(shards)


def wait_for_shards(directory, count, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "finished before it could be killed"
        names = os.listdir(directory) if directory.exists() else []
        if sum(".tfrecord-" in name for name in names) >= count:
            return
        time.sleep(0.001)
    raise AssertionError("no shards in two minutes")


def test_a_missing_shard_is_made_again_and_nothing_else(tmp_path, capsys):
    source = make_input(tmp_path)
    argv = arguments(source, tmp_path / "out")
    image_folder.main(argv)
    whole = hashes(tmp_path / "out")
    paths = describe_directory(tmp_path / "out").splits["train"].shards
    times = {path: os.stat(path).st_mtime_ns for path in paths}
    paths[1].unlink()
    image_folder.main(argv)
    assert hashes(tmp_path / "out") == whole
    assert "no image was read" not in capsys.readouterr().out
    metadata = tmp_path / "out" / "features.json"
    written = os.stat(metadata).st_mtime_ns
    image_folder.main(argv)
    assert "no image was read" in capsys.readouterr().out and os.stat(metadata).st_mtime_ns == written
    assert [path for path in paths if os.stat(path).st_mtime_ns != times[path]] == [paths[1]]
    with pytest.raises(UserError, match=r"holds a conversion that differs in seed;"):
        image_folder.main([*argv, "--seed", "1"])
    (source / "0003.png").unlink()
    with pytest.raises(UserError, match=r"differs in input;"):
        image_folder.main(argv)


def test_unreadable_images_fail_or_are_skipped_and_named(tmp_path, capsys):
    source = make_input(tmp_path)
    os.truncate(source / "0007.png", 300)
    os.truncate(source / "0011.png", 0)
    argv = arguments(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"^cannot read 00\d\d.png .*--on_error=skip$"):
        image_folder.main(argv)
    image_folder.main([*argv, "--on_error", "skip"])
    assert "2 images were skipped" in capsys.readouterr().err
    info = describe_directory(tmp_path / "out")
    assert sum(info.num_examples.values()) == 28
    lines = sorted((tmp_path / "out" / "skipped.tsv").read_text().splitlines())
    assert [line.split("\t")[0] for line in lines] == ["0007.png", "0011.png"]
    assert "truncated" in lines[0] and all(line.split("\t")[1] for line in lines)
    assert verify.verify(tmp_path / "out", decode=True) == []
    # One is mended: the same command takes it in.
    shutil.copy(source / "0003.png", source / "0011.png")
    image_folder.main([*argv, "--on_error", "skip"])
    assert "1 images were skipped" in capsys.readouterr().err
    assert sum(describe_directory(tmp_path / "out").num_examples.values()) == 29
    shutil.copy(source / "0003.png", source / "0007.png")
    image_folder.main(argv)
    assert sum(describe_directory(tmp_path / "out").num_examples.values()) == 30
    assert not (tmp_path / "out" / "skipped.tsv").exists()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_failing_disk_is_no_unreadable_image(error):
    def load(item):
        raise error

    with pytest.raises(UserError, match=r"^cannot read a.png .*, run the same command$"):
        Encoder(load, (4, 4, 3), on_error="skip").record(Item("a.png", None))


def one_image(item):
    """A loader, of which workers run the same code."""
    return Image.new("RGB", (4, 4))


def test_a_full_disk_is_one_clear_line_and_the_shard_can_be_made_again(tmp_path):
    task = Task("train", tmp_path / "a", tmp_path / "work", [Item(str(n), None) for n in range(2, 300)])
    encoder = Encoder(one_image, (4, 4, 3))
    # The one way to have writes refused that needs no disk of its own.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UserError, match=r"^cannot write .*run the same command again: finished shards"):
            write_shard(task, encoder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not task.path.exists() and not task.outcome_path.exists()
    assert write_shard(task, encoder)["bytes"] == task.path.stat().st_size > 20_000


def test_refusals_before_the_work(tmp_path, monkeypatch):
    source = make_input(tmp_path, count=3)
    with sole_writer(tmp_path / "out" / ".conversion", "busy"):
        with pytest.raises(UserError, match=r"another conversion is running"):
            image_folder.main(arguments(source, tmp_path / "out"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/out/.conversion \(Not a directory\)"):
        image_folder.main(arguments(source, tmp_path / "file" / "out"))
    fixtures.make_folder(tmp_path / "bad", {"a.png": b"", "b.png": b"x"})
    more = ["--on_error", "skip", "--resolution", "8"]
    with pytest.raises(UserError, match=r"none of .* can be read"):
        image_folder.main(arguments(tmp_path / "bad", tmp_path / "none", *more))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"needs about .* GB more"):
        image_folder.main(arguments(source, tmp_path / "out"))
