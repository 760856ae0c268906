"""What a program has done, one JSON object a line, so that it is not done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def entries(path: Path, chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that hold all that is `chosen`; one that a killed program left unfinished is passed over."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if chosen.items() <= line.items():
            found.append(line)
    return found


def add(path: Path, line: dict[str, Any]) -> None:
    """Writes one more."""
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
