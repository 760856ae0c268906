"""The program's modes in the process of a test."""

from __future__ import annotations

import main


def run_mode(capsys, **flags) -> tuple[int, str]:
    """Exit status of one command line, and its output, or, if it failed, its errors."""
    status = main.main(words_of(**flags))
    captured = capsys.readouterr()
    return status, captured.err if status else captured.out


def words_of(**flags) -> list[str]:
    """Flags as words: a list repeats its flag, and None leaves it out."""
    words = []
    for name, value in flags.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}={one}" for one in values if one is not None]
    return words
