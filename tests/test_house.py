"""The house's rules: who may import whom. Read from the source: nothing is imported for it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Bottom to top: a file imports its own room and those before it.
ROOMS = [
    "flags", "pdm_tf.patching", "pdm_tf.randomness", "pdm_tf.atomic", "pdm_tf.images", "pdm_tf.weights",
    "pdm_tf.diffusion", "pdm_tf.networks", "pdm_tf.denoiser", "pdm_tf.describe", "pdm_tf.sampling",
    "pdm_tf.export", "pdm_tf.data", "pdm_tf.training", "pdm_tf.plots", "data_tools", "benchmarks", "main",
]  # fmt: skip
SOURCES = [
    path
    for top in ("flags", "pdm_tf", "data_tools", "benchmarks", "main.py")
    for path in ([ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")))
]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from package import module` imports either; the longer name tells the room.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> int | None:
    fitting = [room for room in ROOMS if name == room or name.startswith(room + ".")]
    return ROOMS.index(max(fitting, key=len)) if fitting else None


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_imports_come_from_the_same_room_or_from_below(path):
    own = room_of(module_of(path))
    if module_of(path) == "pdm_tf":
        assert not imports_of(path)
        return
    assert own is not None, f"{path} lies in no room of the plan"
    for name in imports_of(path):
        other = room_of(name)
        assert other is None or other <= own, f"{module_of(path)} imports {name}, which is above it"


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_walls_that_are_not_about_order(path):
    module, imported = module_of(path), imports_of(path)
    tops = {name.partition(".")[0] for name in imported}
    if module.startswith("flags"):
        assert not tops & {"tensorflow", "keras", "pdm_tf", "tensorflow_addons"}
    if module.startswith("pdm_tf"):
        assert "absl.flags" not in imported and "flags.definitions" not in imported
        assert not any(name.startswith("flags.presets") for name in imported)
    if module.startswith("pdm_tf.sampling"):
        assert not any(name.startswith("pdm_tf.training") for name in imported)
    if module.startswith("pdm_tf.diffusion"):
        text = path.read_text()
        assert "tf.keras" not in text and tops <= {
            "__future__", "collections", "dataclasses", "functools", "math", "numpy", "tensorflow", "pdm_tf",
        }  # fmt: skip
    assert "main" not in tops
    assert not tops & {"pickle", "cPickle", "dill"}


def test_every_module_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
