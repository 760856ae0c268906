"""What importing the stack says, and what it does not hide. Each import has a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(program, folder=None, shell_end=""):
    """The finished process of a program that sees `folder` before any installed package."""
    paths = [str(folder)] * bool(folder) + [str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = ["sh", "-c", f'exec "$0" -c "$1" {shell_end}', sys.executable, program]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)


def fake(folder, text):
    """A package named tensorflow, as it is loaded."""
    (folder / "tensorflow.py").write_text("import os\nos.write(2, b'a line of the loader\\n')\n" + text)
    return folder


def test_importing_and_computing_print_nothing(monkeypatch):
    monkeypatch.delenv("TF_FORCE_GPU_ALLOW_GROWTH", raising=False)
    done = run(
        "import pdm_tf, tensorflow as tf, os\n"
        "print(tf.reduce_sum(tf.ones(3)).numpy(), os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3.0 true\n", "")
    after = run("import tensorflow, sys\nsys.stderr.write('-')\nimport pdm_tf\nsys.stderr.write('after')")
    assert after.stderr.endswith("-after")  # stderr is what it was


def test_an_import_error_is_shown_with_all_that_was_said_before_it(tmp_path):
    done = run("import pdm_tf", fake(tmp_path, "raise ImportError('libcudart.so: no such file')"))
    assert done.returncode == 1
    assert done.stderr.startswith("a line of the loader\n")
    assert done.stderr.endswith("ImportError: libcudart.so: no such file\n")


def test_a_crash_is_shown_with_its_place(tmp_path):
    done = run("import pdm_tf", fake(tmp_path, "os.abort()"))
    assert done.returncode < 0
    assert "Fatal Python error: Aborted" in done.stderr and "tensorflow.py" in done.stderr


def test_a_process_without_stderr_imports(tmp_path):
    assert run("import pdm_tf; print('fine')", shell_end="2>&-").stdout == "fine\n"


def test_keras_3_is_refused_with_what_to_do(tmp_path):
    stand = fake(tmp_path, "class keras:\n    __version__ = '3.15.1'")
    done = run("import pdm_tf", stand)
    assert done.returncode == 1
    assert "needs Keras 2, and tf.keras is Keras 3 here: install tf_keras" in done.stderr.splitlines()[-1]


def test_gpu_memory_is_taken_as_needed_unless_the_user_says_otherwise(tmp_path, monkeypatch):
    """TensorFlow reads the variable when a GPU is first used, whoever does that."""
    monkeypatch.setenv("TF_FORCE_GPU_ALLOW_GROWTH", "false")
    done = run("import pdm_tf, os; print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])")
    assert done.stdout == "false\n"
