"""The program's modes in the process of a test."""

from __future__ import annotations

from absl.testing import flagsaver

import main
from flags.definitions import FLAGS


def run_mode(capsys, **flags) -> tuple[int, str]:
    """Exit status of one command line, and its output, or, if it failed, its errors."""
    if not FLAGS.is_parsed():
        FLAGS(["main.py"])
    # As the command line gives them.
    if isinstance(flags.get("run_dir"), str):
        flags["run_dir"] = [flags["run_dir"]]
    with flagsaver.flagsaver(**flags):
        try:
            main.main(None)
            status = 0
        except SystemExit as exit:
            status = exit.code
    captured = capsys.readouterr()
    return status, captured.err if status else captured.out
