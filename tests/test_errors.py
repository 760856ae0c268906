"""How a program ends of what goes wrong."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from pdm_tf import errors
from pdm_tf.errors import Stopped, UserError, one_line, run


def raising(error):
    def main():
        if error:
            raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "out", "err"),
    [
        (None, 0, "", ""),
        (UserError("no such file: make it"), 2, "", "error: no such file: make it\n"),
        (UserError("no file 'a\nb'"), 2, "", "error: no file 'a b'\n"),
        (
            FileNotFoundError(2, "No such file or directory", "a\nb"),
            2,
            "",
            "error: [Errno 2] No such file or directory: 'a\\nb': mend that, then run the same command again"
            "\n",
        ),
        (
            tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]"),
            2,
            "",
            "error: out of memory: take fewer images at a time; docs/troubleshooting.md lists what else "
            "saves memory (OOM when allocating tensor with shape[9])\n",
        ),
        (
            MemoryError("Unable to allocate 9 TiB"),
            2,
            "",
            "error: out of memory: take fewer images at a time; docs/troubleshooting.md lists what else "
            "saves memory (Unable to allocate 9 TiB)\n",
        ),
        (Stopped("stopped by SIGTERM: run it again"), 75, "stopped by SIGTERM: run it again\n", ""),
        (KeyboardInterrupt(), 75, "", "interrupted: run the same command to go on with what is done\n"),
    ],
)
def test_each_end_has_its_status_and_at_most_one_line(capsys, error, status, out, err):
    assert run(raising(error)) == status
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (out, err)


def test_a_mistake_of_ours_is_shown_as_it_is():
    """A plain ValueError is none of the user's, though UserError is a kind of it."""
    for error in (ValueError("a mistake"), SystemExit(3)):
        with pytest.raises(type(error)):
            run(raising(error))


def test_a_message_is_on_one_short_line_and_never_empty():
    assert one_line(ValueError(" a\n  b\tc ")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert one_line("\x1b[31mred\udcff") == "\N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER}"
    assert len(one_line(ValueError("x" * 1000))) == 300


def test_names_that_the_terminal_cannot_show_do_not_end_a_program(repository):
    code = "from pdm_tf.errors import run\nrun(lambda: print('caf\\u00e9 \\udcff'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"caf\\xe9 \\udcff\n")


PROGRAM = """
import importlib.util, sys

spec = importlib.util.spec_from_file_location("errors", sys.argv[1])  # alone: TensorFlow takes seconds
errors = importlib.util.module_from_spec(spec)
spec.loader.exec_module(errors)

def work():
    for step in range(20_000):
        print("a line of the log", step)
        print("a step of the bar", step, file=sys.stderr, flush=True)
    with open(sys.argv[2], "w") as file:
        assert file.fileno() > 2
        file.write("done")

sys.exit(errors.run(work))
"""


@pytest.mark.parametrize("streams", ["2>&-", ">&- 2>&-", ">/dev/full 2>&1", "2>&1 | head -n 1"])
def test_output_that_nobody_takes_does_not_end_the_work(tmp_path, streams):
    program, done, status = (tmp_path / name for name in ("program.py", "done", "status"))
    program.write_text(PROGRAM)
    command = f"({sys.executable} {program} {errors.__file__} {done}; echo $? >{status}) {streams}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.read_text(), status.read_text()) == ("done", "0\n")
    assert "Error" not in result.stderr and "Exception" not in result.stderr
