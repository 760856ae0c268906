"""Runs a notebook's cells as Colab would, on any Python and with nothing installed.

    python tests/notebook.py NOTEBOOK.ipynb PICTURES

Commands ("!...", with {expressions}) must succeed; what the cells display is written to the folder PICTURES.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

COMMAND = r"(?m)^( *)!((?:.*\\\n)*.*)$"  # it goes on after a backslash


def code_of(path: str | os.PathLike) -> list[str]:
    """The code cells, as they are written."""
    cells = json.loads(Path(path).read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def commands_of(path: str | os.PathLike) -> list[str]:
    """The cells' commands, each on one line."""
    found = [command for text in code_of(path) for _, command in re.findall(COMMAND, text)]
    return [command.replace("\\\n", " ") for command in found]


def cells_of(path: str | os.PathLike) -> list[str]:
    """The code cells as Python, in which commands are calls of `run_command` and %cd one of `os.chdir`."""
    texts = [re.sub(COMMAND, lambda m: f"{m[1]}run_command(f{m[2]!r})", text) for text in code_of(path)]
    return [re.sub(r"(?m)^( *)%cd (.*)$", r"\1__import__('os').chdir('\2')", text) for text in texts]


def run_command(command: str) -> None:
    """What the notebook does with a line that begins with "!", but for errors, which it would only show."""
    print(f"!{command}", flush=True)
    subprocess.run(command, shell=True, check=True)


def fake_display(folder: Path) -> types.ModuleType:
    """IPython.display, as far as the cells use it."""
    module, shown = types.ModuleType("IPython.display"), []
    module.Image = lambda path: Path(path).read_bytes()

    def display(picture: bytes) -> None:
        shown.append(picture)
        (folder / f"{len(shown)}.png").write_bytes(picture)

    module.display = display
    return module


def main(notebook: str, pictures: str) -> None:
    """Runs all cells in the current folder."""
    folder = Path(pictures).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sys.modules["IPython"] = types.ModuleType("IPython")
    sys.modules["IPython.display"] = fake_display(folder)
    names = {"run_command": run_command}
    for number, text in enumerate(cells_of(notebook), 1):
        exec(compile(text, f"cell {number}", "exec"), names)


if __name__ == "__main__":
    main(*sys.argv[1:])
