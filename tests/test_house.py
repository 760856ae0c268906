"""The house's rules: who may import whom. Read from the source: nothing is imported for it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Room -> the rooms that it uses: all of them, and no others.
MAY_USE = {
    "flags": "pdm_tf.config pdm_tf.errors",
    "pdm_tf": "pdm_tf.stack",
    "pdm_tf.errors": "",
    "pdm_tf.config": "pdm_tf.errors",
    "pdm_tf.stack": "",
    "pdm_tf.progress": "",
    "pdm_tf.randomness": "",
    "pdm_tf.paths": "pdm_tf.errors",
    "pdm_tf.atomic": "pdm_tf.errors pdm_tf.paths",
    "pdm_tf.images": "pdm_tf.atomic pdm_tf.errors pdm_tf.paths",
    "pdm_tf.weights": "pdm_tf.atomic pdm_tf.errors pdm_tf.paths",
    "pdm_tf.patching": "pdm_tf.errors pdm_tf.stack",
    "pdm_tf.run": "pdm_tf.atomic pdm_tf.config pdm_tf.errors pdm_tf.paths",
    "pdm_tf.averages": "pdm_tf.config pdm_tf.errors pdm_tf.progress pdm_tf.run pdm_tf.weights",
    "pdm_tf.diffusion": "",
    "pdm_tf.networks": "pdm_tf.config pdm_tf.patching pdm_tf.stack",
    "pdm_tf.ledger": "pdm_tf.atomic pdm_tf.errors pdm_tf.paths pdm_tf.progress pdm_tf.weights",
    "pdm_tf.denoiser": "pdm_tf.config pdm_tf.diffusion pdm_tf.networks",
    "pdm_tf.models": "pdm_tf.averages pdm_tf.config pdm_tf.denoiser pdm_tf.errors pdm_tf.run pdm_tf.weights",
    "pdm_tf.devices": "pdm_tf.errors",
    "pdm_tf.describe": "pdm_tf.config pdm_tf.denoiser pdm_tf.networks pdm_tf.sampling",
    "pdm_tf.data": "pdm_tf.atomic pdm_tf.errors pdm_tf.images pdm_tf.paths pdm_tf.stack",
    "pdm_tf.sampling": "pdm_tf.atomic pdm_tf.config pdm_tf.denoiser pdm_tf.diffusion pdm_tf.errors pdm_tf.images "
    "pdm_tf.ledger pdm_tf.paths pdm_tf.progress pdm_tf.randomness",
    "pdm_tf.export": "pdm_tf.atomic pdm_tf.config pdm_tf.denoiser pdm_tf.diffusion pdm_tf.errors pdm_tf.models "
    "pdm_tf.paths pdm_tf.run pdm_tf.sampling pdm_tf.weights",
    "pdm_tf.training": "pdm_tf.atomic pdm_tf.averages pdm_tf.config pdm_tf.data pdm_tf.denoiser pdm_tf.describe "
    "pdm_tf.devices pdm_tf.diffusion pdm_tf.errors pdm_tf.evaluation pdm_tf.images pdm_tf.networks "
    "pdm_tf.paths pdm_tf.progress pdm_tf.randomness pdm_tf.run pdm_tf.sampling pdm_tf.stack "
    "pdm_tf.weights",
    "pdm_tf.evaluation": "pdm_tf.atomic pdm_tf.config pdm_tf.data pdm_tf.denoiser pdm_tf.devices pdm_tf.diffusion "
    "pdm_tf.errors pdm_tf.images pdm_tf.ledger pdm_tf.models pdm_tf.paths pdm_tf.progress "
    "pdm_tf.randomness pdm_tf.sampling pdm_tf.stack pdm_tf.weights",
    "pdm_tf.plots": "pdm_tf.atomic pdm_tf.run",
    "pdm_tf.analysis": "pdm_tf.atomic pdm_tf.config pdm_tf.data pdm_tf.denoiser pdm_tf.diffusion pdm_tf.errors "
    "pdm_tf.images pdm_tf.models pdm_tf.paths pdm_tf.plots pdm_tf.progress pdm_tf.randomness "
    "pdm_tf.run pdm_tf.sampling pdm_tf.training",
    "pdm_tf.page": "pdm_tf.analysis pdm_tf.atomic pdm_tf.config pdm_tf.data pdm_tf.denoiser pdm_tf.errors "
    "pdm_tf.images pdm_tf.models pdm_tf.sampling",
    "data_tools": "pdm_tf pdm_tf.atomic pdm_tf.data pdm_tf.errors pdm_tf.evaluation pdm_tf.images pdm_tf.paths "
    "pdm_tf.progress pdm_tf.weights",
    "benchmarks": "data_tools pdm_tf pdm_tf.config pdm_tf.data pdm_tf.denoiser pdm_tf.describe pdm_tf.errors "
    "pdm_tf.evaluation pdm_tf.models pdm_tf.networks pdm_tf.progress pdm_tf.run pdm_tf.sampling "
    "pdm_tf.stack pdm_tf.training",
    "experiments": "pdm_tf.analysis pdm_tf.config pdm_tf.data pdm_tf.denoiser pdm_tf.describe pdm_tf.diffusion "
    "pdm_tf.errors pdm_tf.evaluation pdm_tf.models pdm_tf.randomness pdm_tf.run pdm_tf.sampling "
    "pdm_tf.stack pdm_tf.training",
    "pdm_tf.commands": "pdm_tf.analysis pdm_tf.config pdm_tf.data pdm_tf.describe pdm_tf.devices pdm_tf.errors "
    "pdm_tf.evaluation pdm_tf.export pdm_tf.images pdm_tf.ledger pdm_tf.models pdm_tf.page "
    "pdm_tf.paths pdm_tf.plots pdm_tf.progress pdm_tf.run pdm_tf.sampling pdm_tf.training",
    "main": "flags pdm_tf.errors",
    "examples": "",
}
SOURCES = [
    path
    for top in ("flags", "pdm_tf", "data_tools", "benchmarks", "experiments", "examples", "main.py")
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


def room_of(name: str) -> str | None:
    fitting = [room for room in MAY_USE if name == room or name.startswith(room + ".")]
    return max(fitting, key=len, default=None)


def rooms_used(room: str) -> set[str]:
    used = {
        room_of(name) for path in SOURCES if room_of(module_of(path)) == room for name in imports_of(path)
    }
    return used - {None, room}


@pytest.mark.parametrize("room", MAY_USE)
def test_each_room_uses_the_rooms_of_the_table_and_no_others(room):
    assert rooms_used(room) == set(MAY_USE[room].split())


def test_every_file_lies_in_a_room_and_rooms_form_no_circle():
    for path in SOURCES:
        assert room_of(module_of(path)), f"{path} lies in no room of the plan"
    below = {room: set(uses.split()) for room, uses in MAY_USE.items()}
    while below:
        ready = {room for room, uses in below.items() if not uses & set(below)}
        assert ready, f"a circle among {sorted(below)}"
        below = {room: uses for room, uses in below.items() if room not in ready}


def test_the_readme_s_picture_shows_the_rooms():
    text = (ROOT / "README.md").read_text()
    picture = re.search(r"## The house\n+```\n(.*?)```", text, re.DOTALL)[1]
    shown, top = set(), ""
    for line in picture.splitlines():
        indented, names = line.startswith(" "), re.match(r"\s*((?:[a-z_]+(?:\.py|/)\s)+)", line + " ")
        if names:
            own = [name.removesuffix(".py").removesuffix("/") for name in names[1].split()]
            top = top if indented else own[0]
            shown |= {f"{top}.{name}" if indented else name for name in own}
    inside_flags = {name for name in shown if name.startswith("flags.")}
    assert {f"{name.replace('.', '/')}.py" for name in inside_flags} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "flags").glob("[a-z]*.py")
    }
    assert shown - inside_flags - {"tests"} == set(MAY_USE)


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_walls_that_are_not_about_rooms(path):
    module, text = module_of(path), path.read_text()
    tops = {name.partition(".")[0] for name in imports_of(path)}
    if module.startswith(("flags", "pdm_tf.config", "pdm_tf.errors")):
        assert not tops & {"tensorflow", "keras", "tensorflow_addons"}
    if module.startswith("pdm_tf"):
        assert not tops & {"flags"} and "absl.flags" not in imports_of(path)
    if module.startswith("pdm_tf") and not module.startswith(("pdm_tf.config", "pdm_tf.commands")):
        assert "pdm_tf.config.presets" not in imports_of(path)
        # Messages name settings: the commands of data_tools alone are told with their flags.
        assert module.startswith("pdm_tf.data") or not re.search(r"[\"' ]--[a-z_]+[ =\"']", text)
    if module.startswith("pdm_tf.diffusion"):
        assert tops <= {
            "__future__", "collections", "dataclasses", "functools", "math", "numpy", "tensorflow", "pdm_tf",
        }  # fmt: skip
    if module != "pdm_tf.stack" and not module.startswith("examples"):
        assert not re.search(r"tf\.keras|tf_keras|tensorflow_addons|environ.*[\"']TF_(?!CONFIG)", text)
    assert "main" not in tops
    # One file of somebody else's is read once, by an unpickler that knows four names.
    assert module == "data_tools.efficientnet" or not tops & {"pickle", "cPickle", "dill"}


def test_every_module_says_what_it_is():
    for path in SOURCES:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


def test_functions_fit_a_screen():
    """Sixty lines of code, docstring and comments not counted."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = path.read_text().splitlines()[body[0].lineno - 1 : node.end_lineno] if body else []
                code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
                assert len(code) <= 60, f"{path}: {node.name} has {len(code)} lines"
