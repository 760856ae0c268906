"""The driver of all experiments: runs are trained once, measured once, and shown on pages made of numbers."""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdm_tf.config.words import word
from pdm_tf.errors import EXIT_STOPPED, Stopped, UserError
from pdm_tf.ledger import Ledger
from pdm_tf.run import RunFolder, step_of

ROOT = Path(__file__).parents[1]

Execute = Callable[[Sequence[str]], None]


def main_py(arguments: Sequence[str]) -> None:
    """Runs one command of main.py in a child process.

    Stopped if it was stopped, and has saved its work; UserError if it failed, and has printed why.
    """
    # In a session of its own: a signal to this program is passed on once, and not by the terminal too.
    process = subprocess.Popen([sys.executable, "main.py", *arguments], cwd=ROOT, start_new_session=True)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if status == EXIT_STOPPED:
        raise Stopped("run the same command to go on")
    if status:
        raise UserError(
            f"main.py {shlex.join(arguments)} ended with status {status}: mend what it says first"
        )


class Driver:
    """Trains and measures what is missing in one folder; stopped at any time, it goes on from there.

    Attributes:
      out: the folder of runs and results.
      execute: runs a command of main.py.
      dry: commands are only shown, so that nothing has been done after them.
    """

    def __init__(self, out: Path, execute: Execute = main_py, dry: bool = False):
        self.out = out
        self.execute = execute
        self.dry = dry
        self.ledger = Ledger(out, {"experiment": 1})
        if not dry:
            out.mkdir(parents=True, exist_ok=True)

    def train(self, folder: RunFolder, steps: int, arguments: Sequence[str]) -> None:
        """Trains a run up to `steps`, if it is shorter."""
        if steps_done(folder) < steps:
            self.execute(["--mode=train", f"--run_dir={folder}", f"--train_steps={steps}", *arguments])

    def once(
        self,
        key: Mapping[str, Any],
        measure: Callable[[], Mapping[str, Any] | None],
        file: Path | None = None,
    ) -> dict[str, Any]:
        """The numbers that `measure` returned for this key, now or in an earlier call of the program.

        Args:
          key: all that decides the numbers, as JSON values.
          measure: () -> numbers, or lists of numbers, by name; None: there are none.
          file: what it makes beside them; where that is not there, it is called again.
        """
        if self.dry:
            return dict(measure() or {})
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        if name not in self.ledger.names() or (file and not file.exists()):
            self.ledger.write(name, measure() or {})
        return {key: array.tolist() for key, array in self.ledger.read(name).items()}


def steps_done(folder: RunFolder) -> int:
    """How long a run is, by its averaged weights; 0 before it has any."""
    try:
        return step_of(folder.newest_weights())
    except UserError:
        return 0


def settings_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings of a config as flags of main.py."""
    return [f"--set={key}={word(value)}" for key, value in settings.items()]


def markdown(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def write_part(page: Path, name: str, text: str) -> None:
    """Replaces the text between the marks of a part on a page; UserError if it has none of these."""
    begin = f"<!-- {name} -->\n"
    end = f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{page} has no lines {begin.strip()} and {end} to write {name} between: add them")
    page.write_text(before + begin + text + "\n" + end + after)
