"""setup.sh: which Python, which installer, when anew, what is refused. Interpreters and uv are stand-ins."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Says its version and its path, can make an environment, and notes what it is asked to install.
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
    """A checkout's set-up on a machine that has these tools, and nothing else of Python's."""

    def __init__(self, folder):
        self.folder, self.bin, self.log = folder / "a checkout", folder / "bin", folder / "log"
        self.folder.mkdir()
        self.bin.mkdir()
        for name in ("setup.sh", "requirements.lock", "requirements-gpu.lock"):
            shutil.copy(ROOT / name, self.folder)
        for tool in ("sh", "sed", "cksum", "rm", "mkdir", "cp", "touch", "dirname"):
            (self.bin / tool).symlink_to(shutil.which(tool))

    def python(self, name, version, no_venv=0, no_network=0):
        path = self.bin / name
        text = PYTHON.format(version=version, path=path, log=self.log, no_venv=no_venv, no_network=no_network)
        self.tool(name, text)
        return self

    def uv(self):
        self.tool("uv", UV.format(log=self.log))
        return self

    def tool(self, name, text):
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def setup(self, **wanted):
        """The exit status, what was said, and what has been installed since the last time."""
        self.log.write_text("")
        done = subprocess.run(
            ["./setup.sh"], cwd=self.folder, env={"PATH": str(self.bin), **wanted}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, self.log.read_text()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_the_first_python_that_runs_and_fits_is_taken(machine):
    machine.python("python", "2.7").python("python3", "3.14").python("python3.12", "3.12")
    machine.tool("python3.11", "#!/bin/sh\nexit 127")  # a shim of pyenv's for a version that is not chosen
    status, said, installed = machine.setup()
    assert (status, said) == (0, "making .venv with python3.12 (Python 3.12) and pip\n")
    assert installed == "pip -m pip install --quiet --disable-pip-version-check -r requirements.lock\n"


def test_uv_is_used_where_it_is(machine):
    status, said, installed = machine.python("python3", "3.13").uv().setup()
    assert (status, said) == (0, f"making .venv with python3 (Python 3.13) and {machine.bin}/uv\n")
    assert installed.endswith("uv pip install --quiet --python .venv/bin/python -r requirements.lock\n")


def test_nothing_is_done_twice_and_all_is_where_something_changed(machine):
    machine.python("python3.11", "3.11").python("python3.13", "3.13")
    assert machine.setup()[2]
    assert machine.setup() == machine.setup(PYTHON="python3.11") == (0, "", "")
    # Another Python than the environment's own, which it then keeps.
    assert "python3.13 (Python 3.13)" in machine.setup(PYTHON="python3.13")[1]
    assert machine.setup() == (0, "", "")
    with open(machine.folder / "requirements.lock", "a") as file:
        file.write("more==1.0\n")
    status, said, installed = machine.setup()
    assert status == 0 and "(Python 3.13)" in said and installed


def test_an_environment_for_gpus_serves_all_and_another_does_not_serve_gpus(machine):
    machine.python("python3.11", "3.11")
    assert machine.setup(GPU="0")[2].endswith("-r requirements.lock\n")
    assert machine.setup(GPU="1")[2].endswith("-r requirements-gpu.lock\n")
    assert machine.setup() == machine.setup(GPU="1") == (0, "", "")


def test_one_that_was_not_finished_is_made_again(machine):
    status, said, _ = machine.python("python3.11", "3.11", no_network=1).setup()
    assert status == 2 and said.splitlines()[-1].startswith("error: requirements.lock could not be installed")
    assert machine.python("python3.11", "3.11").setup()[0] == 0
    assert machine.setup() == (0, "", "")


@pytest.mark.parametrize("version", ["3.8", "3.14"])
def test_a_python_without_tensorflow_is_refused_in_one_line(machine, version):
    status, said, _ = machine.python("python3", version).setup()
    assert status == 2 and said.count("\n") == 1
    assert (
        f"needs Python 3.9 to 3.13 (no TensorFlow that fits has wheels for others); python3 is {version}"
        in said
    )
    assert "none of nowhere runs" in machine.setup(PYTHON="nowhere")[1]


def test_a_python_without_venv_is_refused_where_there_is_no_uv(machine):
    status, said, _ = machine.python("python3", "3.12", no_venv=1).setup()
    assert status == 2 and said.count("\n") == 1 and "apt install python3.12-venv" in said
    assert machine.uv().setup()[0] == 0


def test_a_folder_of_somebody_elses_is_left_alone(machine):
    (machine.folder / "thesis").mkdir()
    status, said, _ = machine.python("python3", "3.12").setup(VENV="thesis")
    assert status == 2 and "VENV=thesis is there, and not made by this" in said
    assert (machine.folder / "thesis").is_dir()
    assert machine.setup(VENV="another one")[0] == 0
    assert (machine.folder / "another one/bin/python").exists()
