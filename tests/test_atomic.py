"""Files and folders that appear whole or not at all."""

import errno
import json
import os
import subprocess
import sys

import pytest

from pdm_tf.atomic import HOST, atomic_file, atomic_folder, atomic_json, atomic_text, sole_writer
from pdm_tf.errors import UserError

KILLED = """
import os, signal, sys
from pdm_tf.atomic import {kind}
with {kind}(*sys.argv[1:]) as partial:
    ({path}).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_while_writing(repository, kind, written, *arguments):
    code = KILLED.format(kind=kind, path=written)
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=repository)
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
    killed_while_writing(repository, "atomic_file", "partial", path)
    assert path.read_text() == "before" and len(os.listdir(tmp_path)) == 2
    with atomic_file(path) as partial:
        partial.write_text("after")
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["file"]


def test_so_with_folders(repository, tmp_path):
    path = tmp_path / "folder"
    killed_while_writing(repository, "atomic_folder", "partial / 'file'", path, "file")
    assert not path.exists() and len(os.listdir(tmp_path)) == 1
    with atomic_folder(path, "file") as partial:
        (partial / "file").write_text("after")
    assert (path / "file").read_text() == "after" and os.listdir(tmp_path) == ["folder"]


def test_other_writers_of_now_and_other_files_are_left_alone(tmp_path):
    others = {
        f".file.partial-{HOST}-{os.getppid()}", f".file.partial-other{HOST}-999999999", ".file.partial",
        f".file.partial-{HOST}-1x", f"file.partial-{HOST}-999999999",
    }  # fmt: skip
    for name in others:
        (tmp_path / name).write_text("theirs")
    with atomic_file(tmp_path / "file") as partial:
        partial.write_text("ours")
    assert set(os.listdir(tmp_path)) == {"file", *others}


def test_processes_write_into_one_folder_at_once(repository, tmp_path):
    code = (
        "import sys\nfrom pdm_tf.atomic import atomic_file\n"
        "with atomic_file(sys.argv[1]) as partial:\n"
        "    partial.write_text('theirs')\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "theirs")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=repository, **pipes) as other:
        assert other.stdout.readline() == "in\n"
        with atomic_file(tmp_path / "ours") as partial:
            partial.write_text("ours")
            assert len(os.listdir(tmp_path)) == 2
    assert other.returncode == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "ours": "ours",
        "theirs": "theirs",
    }


def test_a_number_that_a_new_process_has_again_is_no_sign_of_life(tmp_path):
    (tmp_path / f".folder.partial-{HOST}-{os.getpid()}").mkdir()
    (tmp_path / f".folder.partial-{HOST}-{10**30}").mkdir()
    with atomic_folder(tmp_path / "folder", "file"):
        pass
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("write", [atomic_file, lambda path: atomic_folder(path, "file")])
def test_a_file_where_a_folder_should_be_is_said_in_one_line(tmp_path, write):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/below"), write(tmp_path / "file" / "below"):
        pass


def test_text_and_json_come_back_and_equal_values_give_equal_bytes(tmp_path):
    odd = os.fsdecode(b"caf\xe9 \xc3\xa9")
    atomic_text(tmp_path / "a", odd)
    assert os.fsencode(odd) == (tmp_path / "a").read_bytes()
    atomic_json(tmp_path / "b", {"b": [1, None], "a": "é"})
    atomic_json(tmp_path / "c", {"a": "é", "b": [1, None]})
    assert (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert json.loads((tmp_path / "b").read_text()) == {"a": "é", "b": [1, None]}


def test_one_process_writes_and_its_death_frees_the_folder(repository, tmp_path):
    folder = tmp_path / "new" / "folder"
    code = (
        "import sys\nfrom pdm_tf.atomic import sole_writer\n"
        "with sole_writer(sys.argv[1], 'busy'):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=repository, **pipes) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=r"^somebody else$"), sole_writer(folder, "somebody else"):
            pass
        other.kill()
    with sole_writer(folder, "somebody else"):
        pass
    with pytest.raises(BlockingIOError, match="mine"), sole_writer(folder, "somebody else"):
        raise BlockingIOError("mine")


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
    err = capsys.readouterr().err
    assert (
        err == f"note: {tmp_path} is not locked (No locks available): start nothing else that writes there\n"
    )


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
