"""Network weights as one .npz file: arrays by variable name, no pickle, no framework."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from flags.errors import UserError, one_line
from pdm_tf.atomic import atomic_file
from pdm_tf.paths import as_path


def variable_names(variables: Sequence[tf.Variable]) -> list[str]:
    """The variables' names without TensorFlow's output suffix, such as "unet/conv_in/kernel"."""
    names = [variable.name.split(":")[0] for variable in variables]
    assert len(set(names)) == len(names), "layers of one network must have different names"
    return names


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays to `path` atomically."""
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads named arrays; every byte is checked against the file's own checksums.

    Raises:
      UserError: the file is missing or damaged.
    """
    try:
        with as_path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # zipfile and NumPy raise all kinds, as damage has it
        raise UserError(f"{path} is damaged ({one_line(error)}): restore it or delete it") from error


def assign_arrays(
    variables: Sequence[tf.Variable], arrays: Mapping[str, np.ndarray], where: str | os.PathLike
) -> None:
    """Gives each variable the array of its name; float16 files are widened.

    Raises:
      UserError: as `arrays_for`.
    """
    for variable, value in zip(variables, arrays_for(variables, arrays, where)):
        variable.assign(value.astype(variable.dtype.as_numpy_dtype))


def completed(
    variables: Sequence[tf.Variable], arrays: Mapping[str, np.ndarray], where: str | os.PathLike
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of `arrays` that fit variables by name and shape, and the other variables' own values.

    Returns:
      an array for each variable's name, and a word for each that does not fit.
    Raises:
      UserError: nothing of `arrays` (from the file `where`) fits.
    """
    found, left = {}, [f"{name} (not here)" for name in arrays]
    for name, variable in zip(variable_names(variables), variables):
        there = tuple(arrays[name].shape) if name in arrays else None
        fits = there == tuple(variable.shape)
        found[name] = arrays[name] if fits else variable.numpy()
        if there:
            left.remove(f"{name} (not here)")
        if not fits:
            left.append(f"{name} ({there or 'not'} there, {tuple(variable.shape)} here)")
    if not any(found[name] is arrays.get(name) for name in found):
        raise UserError(f"nothing of {where} fits this network")
    return found, left


def arrays_for(
    variables: Sequence[tf.Variable], arrays: Mapping[str, np.ndarray], where: str | os.PathLike
) -> list[np.ndarray]:
    """The array of each variable's name, of its shape.

    Raises:
      UserError: `arrays` (from the file `where`) are those of another network.
    """
    names = variable_names(variables)
    missing = [name for name in names if name not in arrays]
    if missing or len(arrays) != len(names):
        odd = missing or sorted(set(arrays) - set(names))
        raise UserError(f"{where} holds the weights of another network ({len(odd)} differ, such as {odd[0]})")
    for name, variable in zip(names, variables):
        own, shape = arrays[name].shape, tuple(variable.shape)
        if own != shape:
            raise UserError(f"{where}: {name} is {own}, and the network's is {shape}")
    return [arrays[name] for name in names]
