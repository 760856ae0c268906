"""`pip install .` gives the library alone, with its data: docs/keras.md's code runs without a checkout."""

import os
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.documents import ROOT, copy_tracked_files, items

PYTHON_BLOCKS = [item.python for item in items(ROOT / "docs/keras.md") if item.python]
INSTALLED = """
import importlib.metadata, importlib.util
import pathlib
import pdm_tf
from pdm_tf.data import find_dataset
from pdm_tf.evaluation.efficientnet import WEIGHTS
from pdm_tf.run import PRETRAINED

assert not pathlib.Path(pdm_tf.__file__).is_relative_to(CHECKOUT)
for name in ("flags", "main", "tests", "data_tools", "benchmarks", "experiments"):
    assert importlib.util.find_spec(name) is None, name
assert len(importlib.metadata.requires("pdm_tf")) > 10
for name in ("avatars64", "emoji64"):
    assert find_dataset(name, "").num_examples["train"] > 1000
    assert list((PRETRAINED / name / "ema").glob("*.npz"))
assert WEIGHTS.exists()
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "with_dependencies",
    [
        pytest.param(False, marks=pytest.mark.slow, id="dependencies of this environment"),
        pytest.param(True, marks=pytest.mark.heavy, id="dependencies installed"),
    ],
)
def test_the_library_is_installed_without_the_rest(tmp_path, with_dependencies):
    checkout = copy_tracked_files(tmp_path / "checkout")
    venv.create(tmp_path / "environment", with_pip=False)
    python = tmp_path / "environment/bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    if not with_dependencies:
        install += ["--no-deps", "--no-build-isolation"]
        (packages,) = (tmp_path / "environment/lib").glob("python*/site-packages")
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([*install, checkout], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    assert len(PYTHON_BLOCKS) == 2
    for code in (f"CHECKOUT = {str(ROOT)!r}{INSTALLED}", *PYTHON_BLOCKS):
        subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, check=True)
