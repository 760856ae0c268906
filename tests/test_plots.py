"""Figures do not depend on the environment's Matplotlib settings."""

import os
import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from pdm_tf import plots

PROGRAM = """
import importlib.util, sys
from unittest.mock import MagicMock

for room in ("pdm_tf", "pdm_tf.atomic", "pdm_tf.run"):  # TensorFlow takes seconds to import
    sys.modules[room] = MagicMock()
spec = importlib.util.spec_from_file_location("plots", sys.argv[1])
spec.loader.exec_module(importlib.util.module_from_spec(spec))
import os
print(os.environ["MPLBACKEND"], "matplotlib.pyplot" in sys.modules)
"""


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "none such"])
def test_the_backend_of_a_notebook_does_no_harm(backend):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, plots.__file__],
        env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == f"{backend} False\n", done.stderr


def test_figures_do_not_depend_on_the_users_style(tmp_path):
    curve = plots.Panel("title", "x", {"line": (np.arange(3), np.arange(3), None)})
    plots.draw(tmp_path / "one.png", panels=[curve])
    with matplotlib.rc_context({"axes.facecolor": "black", "savefig.dpi": 30}):
        plots.draw(tmp_path / "other.png", panels=[curve])
        assert matplotlib.rcParams["axes.facecolor"] == "black"  # what others draw stays theirs
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("one", "other")))


def test_nobody_else_imports_matplotlib(repository):
    sources = [
        p
        for top in ("pdm_tf", "benchmarks", "experiments", "flags", "data_tools")
        for p in (repository / top).rglob("*.py")
    ]
    users = [p.name for p in sources if re.search(r"^\s*(import|from) matplotlib", p.read_text(), re.M)]
    assert users == ["plots.py"]
