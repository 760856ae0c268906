"""The conversion engine: killed, resumed, out of disk, with unreadable images."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import tensorflow_datasets as tfds

from data_tools import image_folder, verify
from pdm_tf.atomic import sole_writer
from pdm_tf.data import describe_directory, load_batches
from pdm_tf.errors import EXIT_DONE, EXIT_USER_ERROR, UserError
from tests.data import fixtures
from tests.data_tools.conversions import arguments, hashes, make_input, run_tool


def test_every_image_once_in_an_order_that_the_seed_decides(tmp_path):
    source = make_input(tmp_path)
    orders = {}
    for seed, workers in (("0", "1"), ("0", "2"), ("1", "2")):
        output = tmp_path / f"{seed}{workers}"
        image_folder.main(arguments(source, output, "--seed", seed, "--workers", workers))
        info = describe_directory(output)
        assert info.num_examples == {"train": 27, "validation": 3}
        assert len(info.splits["train"].shards) > 3
        batches = [
            load_batches(info, split=split, batch_size=count, seed=0, shuffle=False, repeat=False)
            for split, count in info.num_examples.items()
        ]
        orders[seed, workers] = [n for b in batches for n in fixtures.numbers_of(next(iter(b))[0])]
        assert sorted(orders[seed, workers]) == list(range(30))
    assert orders["0", "1"] == orders["0", "2"] != orders["1", "2"]
    assert orders["0", "1"] != list(range(30))
    builder = tfds.builder_from_directory(tmp_path / "02")
    assert sum(1 for _ in builder.as_dataset(split="train+validation")) == 30
    # All but the folder's name, which is the data set's.
    names = [
        {name.partition("-")[2]: digest for name, digest in hashes(tmp_path / f).items()}
        for f in ("01", "02")
    ]
    assert names[0].pop("") and names[1].pop("") and names[0] == names[1] and len(names[0]) > 3


def test_shard_sizes_follow_the_flag(tmp_path):
    source = make_input(tmp_path, count=60)
    image_folder.main(arguments(source, tmp_path / "out", shard_mb="0.02"))
    info = describe_directory(tmp_path / "out")
    sizes = [os.path.getsize(path) for path in info.splits["train"].shards]
    assert len(sizes) > 3 and all(14_000 < size < 22_000 for size in sizes)


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


@pytest.mark.parametrize("sigkills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_kill_9_and_run_again_gives_the_same_bytes(tmp_path, sigkills):
    source = make_input(tmp_path, count=240, size=128)
    argv = arguments(source, tmp_path / "a" / "set", shard_mb="0.25")
    image_folder.main(arguments(source, tmp_path / "b" / "set", shard_mb="0.25"))
    whole = hashes(tmp_path / "b")
    for kill in range(sigkills):
        process = subprocess.Popen(
            [sys.executable, "-m", "data_tools.image_folder", *argv],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for_shards(tmp_path / "a" / "set", 3 * (kill + 1), process)
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
    result = run_tool("image_folder", *argv)
    assert result.returncode == EXIT_DONE, result.stderr
    assert hashes(tmp_path / "a") == whole
    redone = [name for name in shards if (tmp_path / "a" / "set" / name).stat().st_mtime_ns != before[name]]
    # At most the shards whose record was not written yet, one for each worker.
    assert len(redone) <= 2 < len(shards)


def wait_for_shards(directory, count, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "finished before it could be killed"
        names = os.listdir(directory) if directory.exists() else []
        if sum(".tfrecord-" in name for name in names) >= count:
            return
        time.sleep(0.001)
    raise AssertionError("no shards in a minute")


def test_finished_work_is_not_redone_and_a_missing_shard_is(tmp_path):
    source = make_input(tmp_path)
    argv = arguments(source, tmp_path / "out")
    image_folder.main(argv)
    whole = hashes(tmp_path / "out")
    paths = describe_directory(tmp_path / "out").splits["train"].shards
    times = {path: os.stat(path).st_mtime_ns for path in paths}
    paths[1].unlink()
    image_folder.main(argv)
    assert hashes(tmp_path / "out") == whole
    assert [p for p in paths if os.stat(p).st_mtime_ns != times[p]] == [paths[1]]


def test_another_conversion_into_the_same_folder_is_refused(tmp_path):
    source = make_input(tmp_path)
    argv = arguments(source, tmp_path / "out")
    image_folder.main(argv)
    with pytest.raises(UserError, match=r"holds a conversion that differs in seed;"):
        image_folder.main([*argv, "--seed", "1"])
    (source / "0003.png").unlink()
    with pytest.raises(UserError, match=r"differs in input;"):
        image_folder.main(argv)


def test_two_at_once_are_refused(tmp_path):
    source = make_input(tmp_path)
    with sole_writer(tmp_path / "out" / ".conversion", "busy"):
        with pytest.raises(UserError, match=r"another conversion is running"):
            image_folder.main(arguments(source, tmp_path / "out"))


def test_unreadable_images_fail_or_are_skipped_and_named(tmp_path, capsys):
    source = make_input(tmp_path)
    os.truncate(source / "0007.png", 300)
    os.truncate(source / "0011.png", 0)
    argv = arguments(source, tmp_path / "out")
    failed = run_tool("image_folder", *argv)
    assert failed.returncode == EXIT_USER_ERROR and "Traceback" not in failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot read 00") and "--on_error=skip" in last
    image_folder.main([*argv, "--on_error", "skip"])
    assert "2 images were skipped" in capsys.readouterr().err
    info = describe_directory(tmp_path / "out")
    assert sum(info.num_examples.values()) == 28
    lines = sorted((tmp_path / "out" / "skipped.tsv").read_text().splitlines())
    assert [line.split("\t")[0] for line in lines] == ["0007.png", "0011.png"]
    assert "truncated" in lines[0] and all(line.split("\t")[1] for line in lines)
    assert verify.verify(tmp_path / "out", decode=True) == []


def test_nothing_readable(tmp_path):
    fixtures.make_folder(tmp_path / "in", {"a.png": b"", "b.png": b"x"})
    more = ["--on_error", "skip", "--resolution", "8"]
    with pytest.raises(UserError, match=r"none of .* can be read"):
        image_folder.main(arguments(tmp_path / "in", tmp_path / "out", *more))


def test_full_disk_is_one_clear_line_and_can_be_resumed(tmp_path):
    source = make_input(tmp_path, count=60)
    argv = arguments(source, tmp_path / "out", shard_mb="0.04")

    def small_files_only():
        # The one way to have writes refused that needs no disk of its own.
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    failed = run_tool("image_folder", *argv, preexec_fn=small_files_only)
    assert failed.returncode == EXIT_USER_ERROR and "Traceback" not in failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: cannot write ") and "run the same command again" in last
    image_folder.main(argv)
    assert verify.verify(tmp_path / "out", decode=True) == []


def test_too_little_space_is_said_before_the_work(tmp_path, monkeypatch):
    source = make_input(tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs about .* GB more"):
        image_folder.main(arguments(source, tmp_path / "out"))


def test_output_that_cannot_be_made(tmp_path):
    source = make_input(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/out/.conversion \(Not a directory\)"):
        image_folder.main(arguments(source, tmp_path / "file" / "out"))
