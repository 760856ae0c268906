"""Network weights as one .npz or .safetensors file: arrays by variable name, no pickle, no framework."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from pdm_tf.atomic import atomic_file
from pdm_tf.errors import UserError, one_line
from pdm_tf.paths import as_path


def variable_names(variables: Sequence[tf.Variable]) -> list[str]:
    """The variables' names without TensorFlow's output suffix, such as "unet/conv_in/kernel"."""
    names = [variable.name.split(":")[0] for variable in variables]
    assert len(set(names)) == len(names), "layers of one network must have different names"
    return names


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as .npz or .safetensors, by the ending of `path`, atomically.

    The format .safetensors has no checksum: one of all arrays is put into its metadata.
    """
    with atomic_file(path) as partial, open(partial, "wb") as file:
        if as_path(path).suffix == ".safetensors":
            from safetensors.numpy import save  # here: few runs need it

            arrays = {name: np.require(array, requirements="C") for name, array in arrays.items()}
            file.write(save(arrays, {"crc32": _crc32(arrays)}))
        else:
            np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads named arrays, checked by the file's checksums; another program's .safetensors may have none."""
    try:
        if as_path(path).suffix == ".safetensors":
            return _read_safetensors(as_path(path).read_bytes())
        with as_path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # zipfile and NumPy raise all kinds, as damage has it
        raise UserError(f"{path} is damaged ({one_line(error)}): restore it or delete it") from error


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file; ValueError, among others, if it is damaged."""
    from safetensors.numpy import load

    arrays = load(content)
    length = int.from_bytes(content[:8], "little")  # of the header, JSON, that the library has just checked
    wanted = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("crc32")
    if wanted not in (None, _crc32(arrays)):
        raise ValueError(f"the arrays' crc32 is {_crc32(arrays)}, and that of those written was {wanted}")
    return arrays


def _crc32(arrays: Mapping[str, np.ndarray]) -> str:
    """A checksum of names, types, shapes and values, whatever the order; 8 hexadecimal digits."""
    checksum = 0
    for name, array in sorted(arrays.items()):
        checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(array.reshape(-1).view(np.uint8), checksum)
    return f"{checksum:08x}"


def check_finite(arrays: Mapping[str, np.ndarray], where: str | os.PathLike) -> None:
    """Raises UserError, which names the file `where`, if a weight is NaN or infinite."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise UserError(f"{where}: {name} has values that are not finite: restore it or delete it")


def assign_arrays(
    variables: Sequence[tf.Variable], arrays: Mapping[str, np.ndarray], where: str | os.PathLike
) -> None:
    """Assigns to each variable the array of its name; float16 is widened."""
    for variable, value in zip(variables, arrays_for(variables, arrays, where)):
        variable.assign(value.astype(variable.dtype.as_numpy_dtype))


def completed(
    variables: Sequence[tf.Variable], arrays: Mapping[str, np.ndarray], where: str | os.PathLike
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that fit variables by name and shape, and the current values of all other variables.

    Returns:
      An array for each variable's name, and a note on each name that does not fit.
    Raises:
      UserError: less than half of the network is in the file `where`.
    """
    found, left = {}, [f"{name} (only there)" for name in arrays]
    for name, variable in zip(variable_names(variables), variables):
        there = tuple(arrays[name].shape) if name in arrays else None
        fits = there == tuple(variable.shape)
        found[name] = arrays[name] if fits else variable.numpy()
        if there:
            left.remove(f"{name} (only there)")
        if not fits:
            shapes = f"{there} there, {tuple(variable.shape)} here" if there else "only here"
            left.append(f"{name} ({shapes})")
    fitting = sum(array.size for name, array in found.items() if array is arrays.get(name))
    share = fitting / sum(array.size for array in found.values())
    if share < 0.5:
        raise UserError(f"{where} holds the weights of another network: {share:.0%} of this one is there")
    return found, left


def arrays_for(
    variables: Sequence[tf.Variable], arrays: Mapping[str, np.ndarray], where: str | os.PathLike
) -> list[np.ndarray]:
    """The array of each variable's name; UserError if those of the file `where` are of another network."""
    names = variable_names(variables)
    missing = [name for name in names if name not in arrays]
    if missing or len(arrays) != len(names):
        odd = missing or sorted(set(arrays) - set(names))
        raise UserError(f"{where} holds the weights of another network ({len(odd)} differ, such as {odd[0]})")
    for name, variable in zip(names, variables):
        if arrays[name].shape != tuple(variable.shape):
            raise UserError(
                f"{where}: {name} is {arrays[name].shape}, and the network's is {tuple(variable.shape)}"
            )
    return [arrays[name] for name in names]
