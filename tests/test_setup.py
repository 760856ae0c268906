"""setup.sh: which Python and installer, what is made again or refused. Interpreters and uv are stand-ins."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Prints its version and its path, can make an environment, and logs what it is asked to install.
PYTHON = """#!/bin/sh
case "$*" in
  *version_info*) echo {version} ;;
  *_base_executable*) echo {path} ;;
  *ensurepip*) exit {no_venv} ;;
  "-m venv "*) mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; cp {path} "$3/bin/python" ;;
  "-m pip install "*) echo "pip $*" >> {log}; exit {no_network} ;;
esac
"""
UV = """#!/bin/sh
case "$1" in
  venv) for last; do :; done; mkdir -p "$last/bin"; cp "$5" "$last/bin/python" ;;
esac
echo "uv $*" >> {log}
"""


class Machine:
    """A checkout on a machine that has these tools, and nothing else of Python's."""

    def __init__(self, folder):
        self.folder = folder / "a checkout"
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in ("setup.sh", "requirements.lock", "requirements-gpu.lock"):
            shutil.copy(ROOT / name, self.folder)
        for tool in ("sh", "sed", "cksum", "rm", "mkdir", "cp", "touch", "dirname"):
            (self.bin / tool).symlink_to(shutil.which(tool))

    def python(self, name, version, no_venv=0, no_network=0):
        path = self.bin / name
        text = PYTHON.format(version=version, path=path, log=self.log, no_venv=no_venv, no_network=no_network)
        return self.tool(name, text)

    def tool(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)
        return self

    def setup(self, **variables):
        """The exit status, the output, and what has been installed."""
        self.log.write_text("")
        done = subprocess.run(
            ["./setup.sh"],
            cwd=self.folder,
            env={"PATH": str(self.bin), **variables},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        return done.returncode, done.stdout, self.log.read_text()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_first_python_that_runs_and_fits_is_taken_and_uv_where_it_is(machine):
    machine.python("python", "2.7").python("python3", "3.14").python("python3.12", "3.12")
    machine.tool("python3.11", "#!/bin/sh\nexit 127")  # a shim of pyenv's for a version that is not chosen
    status, output, installed = machine.setup()
    assert (status, output) == (0, "making .venv with python3.12 (Python 3.12) and pip\n")
    assert installed == "pip -m pip install --quiet --disable-pip-version-check -r requirements.lock\n"
    machine.tool("uv", UV.format(log=machine.log))
    installed = machine.setup(VENV="another one")[2]
    assert installed.endswith("uv pip install --quiet --python another one/bin/python -r requirements.lock\n")


def test_nothing_is_done_twice_and_all_is_where_something_changed(machine):
    machine.python("python3.11", "3.11").python("python3.13", "3.13")
    assert machine.setup(GPU="0")[2].endswith("-r requirements.lock\n")
    assert machine.setup() == machine.setup(PYTHON="python3.11") == (0, "", "")
    (machine.folder / ".venv/bin/python").unlink()  # as when its interpreter is removed
    assert "making .venv with" in machine.setup()[1]
    # Another Python than the environment's own, which it then keeps.
    assert "python3.13 (Python 3.13)" in machine.setup(PYTHON="python3.13")[1]
    with open(machine.folder / "requirements.lock", "a") as file:
        file.write("more==1.0\n")
    status, output, installed = machine.setup()
    assert status == 0 and "(Python 3.13)" in output and installed
    # One for GPUs serves all, and another does not serve GPUs.
    assert machine.setup(GPU="1")[2].endswith("-r requirements-gpu.lock\n")
    assert machine.setup() == machine.setup(GPU="1") == (0, "", "")


def test_one_that_was_not_finished_is_made_again(machine):
    status, output, _ = machine.python("python3.11", "3.11", no_network=1).setup()
    assert status == 2
    assert output.splitlines()[-1].startswith("error: requirements.lock could not be installed")
    assert machine.python("python3.11", "3.11").setup()[0] == 0


def test_what_does_not_fit_is_refused_in_one_line(machine):
    def refusal(**variables):
        status, output, _ = machine.setup(**variables)
        assert status == 2 and output.count("\n") == 1
        return output

    assert "needs Python 3.9 to 3.13" in machine.python("python3", "3.14").setup()[1]
    machine.python("python3", "3.12", no_venv=1)
    assert "apt install python3.12-venv" in refusal()
    (machine.folder / "thesis").mkdir()
    machine.python("python3", "3.12")
    assert "VENV=thesis is there, and not made by this" in refusal(VENV="thesis")
    assert (machine.folder / "thesis").is_dir()
