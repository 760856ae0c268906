"""Files and folders that appear whole or not at all."""

import os
import subprocess
import sys

import pytest

from pdm_tf.atomic import atomic_file, atomic_folder

KILLED = """
import os, signal, sys
from pdm_tf.atomic import {kind}
with {kind}(sys.argv[1]) as partial:
    ({path}).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(repository, path, kind, written):
    code = KILLED.format(kind=kind, path=written)
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=repository)
    assert done.returncode == -9


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="inside"), atomic_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError("inside")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_the_next_writer_removes_what_a_killed_one_left(repository, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    killed_while_writing(repository, path, "atomic_file", "partial")
    assert path.read_text() == "before" and len(os.listdir(tmp_path)) == 2
    with atomic_file(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["file"]


def test_so_with_folders(repository, tmp_path):
    path = tmp_path / "folder"
    killed_while_writing(repository, path, "atomic_folder", "partial / 'file'")
    assert not path.exists() and len(os.listdir(tmp_path)) == 1
    with atomic_folder(path) as partial:
        (partial / "file").write_text("after")
    assert (path / "file").read_text() == "after" and os.listdir(tmp_path) == ["folder"]


def test_other_writers_of_now_and_other_files_are_left_alone(tmp_path):
    others = {f".file.partial{os.getppid()}", ".file.partial", ".file.partial1x", "file.partial999999999"}
    for name in others:
        (tmp_path / name).write_text("theirs")
    with atomic_file(tmp_path / "file") as partial:
        partial.write_text("ours")
    assert set(os.listdir(tmp_path)) == {"file", *others}
