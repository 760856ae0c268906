"""The notebook for Colab: its commands are right, and it runs from a clone to the pictures.

tests/test_serving.py has the other examples.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdm_tf.config.presets import DEFAULT_DATASET
from pdm_tf.run import PRETRAINED
from tests.documents import copy_tracked_files
from tests.notebook import cells_of, commands_of
from tests.test_docs import check_main, data_set

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples/colab.ipynb"


def test_the_notebook_is_clean_and_its_commands_are_right(monkeypatch, tmp_path):
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert not cell.get("outputs") and not cell.get("execution_count")
    for text in cells_of(NOTEBOOK):
        compile(text, "cell", "exec")
    monkeypatch.chdir(tmp_path)
    data_set(tmp_path / "data/photos")
    programs = [shlex.split(command) for command in commands_of(NOTEBOOK)]
    ours = [words[2:] for words in programs if words[:2] == [".venv/bin/python", "main.py"]]
    assert {"--mode=sample", "--mode=train"} <= {words[0] for words in ours}
    for words in ours:
        check_main(words)
    assert {words[0] for words in programs} == {"git", "pip", "make", ".venv/bin/python"}


def commit(folder: Path) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A", "-f"], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", *words], cwd=folder, check=True)


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_the_notebook_runs_from_a_clone_to_the_pictures(tmp_path):
    """PDM_TF_COLAB_PYTHON names a bare Python that makes its environment; else this one's is in the clone."""
    repository_to_clone = copy_tracked_files(tmp_path / "origin")
    python, path = os.environ.get("PDM_TF_COLAB_PYTHON"), os.environ["PATH"]
    if python is None:
        python, path = sys.executable, f"{tmp_path}:{path}"
        (repository_to_clone / ".venv").symlink_to(sys.prefix)
        (tmp_path / "uv").write_text("#!/bin/sh\nexit 1\n")  # not to be needed
        (tmp_path / "uv").chmod(0o755)
    commit(repository_to_clone)
    environment = {**os.environ, "REPOSITORY": repository_to_clone.as_uri(), "PATH": path}
    (tmp_path / "content").mkdir()
    subprocess.run(
        [python, ROOT / "tests/notebook.py", NOTEBOOK, tmp_path / "pictures"],
        cwd=tmp_path / "content", env=environment, check=True,
    )  # fmt: skip
    grid, way, preview, curves = (
        np.asarray(Image.open(tmp_path / f"pictures/{number}.png").convert("RGB")) for number in range(1, 5)
    )
    shipped = np.asarray(Image.open(PRETRAINED / DEFAULT_DATASET / "grid.png"))
    assert grid.shape == shipped.shape
    assert np.abs(grid.astype(int) - shipped).mean() < 2
    assert way.shape == np.asarray(Image.open(ROOT / "docs/trajectory.png")).shape
    assert preview.std() > 10 and curves.std() > 10
    assert (tmp_path / "content/pdm_tf/runs/colab/checkpoints").is_dir()
