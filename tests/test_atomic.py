"""Files and folders that appear whole or not at all."""

import contextlib
import errno
import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from pdm_tf.atomic import (
    HOST,
    append_text,
    atomic_file,
    atomic_folder,
    atomic_json,
    atomic_text,
    remove_tree,
    replaced_folder,
    sole_writer,
)
from pdm_tf.errors import UserError
from pdm_tf.paths import as_path

KILLED = """
import os, signal, sys
from pdm_tf.atomic import atomic_file, atomic_folder
with atomic_file(sys.argv[1] + "/file") as file, atomic_folder(sys.argv[1] + "/folder") as folder:
    for half in file, folder / "file":
        half.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
# Holds a lock, and has half a file written, until its standard input ends.
BUSY = """
import sys
from pdm_tf.atomic import atomic_file, sole_writer
with sole_writer(sys.argv[1], "busy"), atomic_file(sys.argv[1] + "/theirs") as partial:
    partial.write_text("theirs")
    print("in", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def busy_process(repository, folder):
    command = [sys.executable, "-c", BUSY, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=repository, **pipes) as process:
        assert process.stdout.readline() == "in\n"
        yield process


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("inside"),
        tf.errors.ResourceExhaustedError(None, None, "Out of memory, inside"),
    ],
)
def test_a_block_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(type(error), match="inside"), atomic_file(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_the_next_writer_removes_what_a_killed_one_left(repository, tmp_path):
    (tmp_path / "file").write_text("before")
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=repository)
    assert done.returncode == -9
    assert (tmp_path / "file").read_text() == "before" and not (tmp_path / "folder").exists()
    assert len(os.listdir(tmp_path)) == 3
    with atomic_file(tmp_path / "file") as partial:
        partial.write_text("after")
    with atomic_folder(tmp_path / "folder", "file") as partial:
        (partial / "file").write_text("after")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "file").read_text() == "after"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_other_writers_of_now_and_other_files_are_left_alone(tmp_path):
    others = {
        f".file.partial-{HOST}-{os.getppid()}",
        f".file.partial-other{HOST}-999999999",
        ".file.partial",
        f".file.partial-{HOST}-1x",
        f"file.partial-{HOST}-999999999",
    }
    for name in others:
        (tmp_path / name).write_text("theirs")
    with atomic_file(tmp_path / "file") as partial:
        partial.write_text("ours")
    assert set(os.listdir(tmp_path)) == {"file", *others}


def test_processes_write_into_one_folder_but_one_alone_has_its_lock(repository, tmp_path):
    folder = tmp_path / "new" / "folder"
    with busy_process(repository, folder) as other:
        with atomic_file(folder / "ours") as partial:
            partial.write_text("ours")
            assert len(os.listdir(folder)) == 3
        with pytest.raises(UserError, match=r"^somebody else$"), sole_writer(folder, "somebody else"):
            pass
        other.stdin.close()
        assert other.wait() == 0
    assert (folder / "ours").read_text() == "ours" and (folder / "theirs").read_text() == "theirs"
    with busy_process(repository, folder) as other:
        other.kill()
    with sole_writer(folder, "somebody else"):  # the death of its process has freed it
        pass
    with pytest.raises(BlockingIOError, match="mine"), sole_writer(folder, "somebody else"):
        raise BlockingIOError("mine")


def test_a_number_that_a_new_process_has_again_is_no_sign_of_life(tmp_path):
    (tmp_path / f".folder.partial-{HOST}-{os.getpid()}").mkdir()
    (tmp_path / f".folder.partial-{HOST}-{10**30}").mkdir()
    with atomic_folder(tmp_path / "folder", "file"):
        pass
    assert os.listdir(tmp_path) == ["folder"]


def test_text_and_json_come_back_and_equal_values_give_equal_bytes(tmp_path):
    odd = os.fsdecode(b"caf\xe9 \xc3\xa9")
    atomic_text(tmp_path / odd, odd)
    append_text(as_path(tmp_path / odd), "\n")
    assert (tmp_path / odd).read_bytes() == os.fsencode(odd) + b"\n"
    atomic_json(tmp_path / "b", {"b": [1, None], "a": "é"})
    atomic_json(tmp_path / "c", {"a": "é", "b": [1, None]})
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert json.loads((tmp_path / "b").read_text()) == {"a": "é", "b": [1, None]}


def test_a_folder_is_replaced_when_its_successor_is_whole(tmp_path):
    path, partial = as_path(tmp_path / "new" / "step"), as_path(tmp_path / "new" / ".partial")
    for content in ("one", "two"):
        with replaced_folder(path, partial, "last") as folder:
            assert partial.is_dir() and path.exists() == (content == "two")
            (folder / "last").write_text(content)
        assert (path / "last").read_text() == content and not partial.exists()
    remove_tree(path)
    remove_tree(path)
    assert not path.exists()


def test_a_file_system_without_locks_is_not_called_busy(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=f"the file system of {tmp_path} has no locks"):
        with sole_writer(tmp_path, "busy"):
            pass
    monkeypatch.setenv("PDM_TF_NO_LOCKS", "1")
    for _ in range(2):
        with sole_writer(tmp_path, "busy"):
            (tmp_path / "written").touch()
    note = f"note: {tmp_path} is not locked (No locks available): start nothing else that writes there\n"
    assert capsys.readouterr().err == note


def test_a_file_system_that_cannot_sync_is_written_all_the_same(tmp_path, monkeypatch, capsys):
    def fsync(descriptor):
        raise OSError(number, "no")

    monkeypatch.setattr("os.fsync", fsync)
    number = errno.EINVAL
    atomic_text(tmp_path / "a", "a")
    with atomic_folder(tmp_path / "b") as partial:
        (partial / "c").touch()
    assert (tmp_path / "a").read_text() == "a" and (tmp_path / "b" / "c").exists()
    assert capsys.readouterr().err.count("does not tell when data are safe (no)") == 1
    number = errno.EIO
    with pytest.raises(OSError, match="no"):
        atomic_text(tmp_path / "a", "b")
    assert (tmp_path / "a").read_text() == "a"
