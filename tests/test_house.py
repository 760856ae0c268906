"""The house's rules: who may import whom, sizes of functions, one fact a line. Read from the sources' text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for top in ("flags", "pdm_tf", "data_tools", "benchmarks", "experiments", "examples", "main.py")
    for path in ([ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")))
]


def rooms_in_the_picture() -> list[str]:
    """The rooms of docs/house.md from top to bottom: folders and modules, those in pdm_tf/ with its name."""
    picture = re.search(r"```text\n(.*?)```", (ROOT / "docs/house.md").read_text(), re.DOTALL)[1]
    rooms, top = [], ""
    for line in picture.splitlines():
        names = re.match(r"\s*((?:[a-z_]+(?:\.py|/)\s+)+)", line + " ")[1].split()
        names = [name.removesuffix(".py").removesuffix("/") for name in names]
        top = top if line.startswith(" ") else f"{names[0]}."
        rooms += [top + name for name in names] if line.startswith(" ") else names
    return [room for room in rooms if room not in ("pdm_tf", "tests")]


ROOMS = rooms_in_the_picture()
PACKED = 60  # to be fewer


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from package import module` imports either; the longer name is the room's.
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(name: str) -> str | None:
    return max((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), key=len, default=None)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_room_uses_only_rooms_above_it_in_the_picture(path):
    room = room_of(module_of(path))
    if module_of(path) == "pdm_tf":
        return
    assert room, f"{path} is in no room of docs/house.md"
    used = {room_of(name) for name in imports_of(path)} - {None, room}
    assert all(ROOMS.index(other) < ROOMS.index(room) for other in used), f"{room} uses {sorted(used)}"


def test_every_room_of_the_picture_is_there():
    for room in ROOMS:
        path = ROOT / room.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), room


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_walls_that_are_not_about_rooms(path):
    module = module_of(path)
    text = path.read_text()
    imports = imports_of(path)
    tops = {name.partition(".")[0] for name in imports}
    if module.startswith(("flags", "pdm_tf.config", "pdm_tf.errors")):
        assert not tops & {"tensorflow", "keras", "tensorflow_addons"}
    if module.startswith("pdm_tf"):
        assert "absl.flags" not in imports
        # Messages name settings; the commands and data tools know flags.
        knows_flags = module.startswith(("pdm_tf.config", "pdm_tf.commands", "pdm_tf.data"))
        assert knows_flags or not re.search(r"[\"' ]--[a-z_]+[ =\"']", text)
    if module.startswith("pdm_tf.diffusion"):
        standard = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
        assert tops <= standard | {"numpy", "tensorflow", "pdm_tf"}
    if module != "pdm_tf.stack" and not module.startswith("examples"):
        assert not re.search(r"tf\.keras|tf_keras|tensorflow_addons|environ.*[\"']TF_(?!CONFIG)", text)
    # One file of somebody else's is read by an unpickler that knows four names.
    assert module == "data_tools.efficientnet" or not tops & {"pickle", "cPickle", "dill"}
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"


def test_functions_fit_a_screen():
    """Sixty lines of code, docstring and comments not counted."""
    for path in SOURCES:
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                code = lines[body[0].lineno - 1 : node.end_lineno] if body else []
                code = [line for line in code if line.strip() and not line.strip().startswith("#")]
                assert len(code) <= 60, f"{path}: {node.name} has {len(code)} lines"


def packed_lines(path: Path) -> Iterator[int]:
    """Lines that assign several values at once, none of which is of another's names: `a, b = x, y`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            (target,) = node.targets[-1:]
            if isinstance(target, ast.Tuple) and len(target.elts) == len(node.value.elts):
                assigned = {n.id for n in ast.walk(target) if isinstance(n, ast.Name)}
                read = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
                if not assigned & read:
                    yield node.lineno


def test_one_fact_a_line():
    packed = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in packed_lines(path)]
    assert len(packed) <= PACKED, packed
