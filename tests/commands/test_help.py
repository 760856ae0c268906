"""Each mode's --help, word for word, as tests/commands/help has it.

`python -m tests.commands.test_help` writes these files.
"""

from pathlib import Path

import pytest

import main
from flags.options import help_text

FOLDER = Path(__file__).parent / "help"


@pytest.mark.parametrize("mode", main.MODES)
def test_help_is_what_it_was(mode):
    assert help_text(mode, main.options_of(mode)) == (FOLDER / f"{mode}.txt").read_text()[:-1]


def test_help_of_one_mode_or_of_all(capsys):
    assert main.main(["--mode=page", "--help"]) == 0
    page = capsys.readouterr().out
    assert main.main(["--help"]) == 0
    every = capsys.readouterr().out
    assert page.endswith((FOLDER / "page.txt").read_text())
    assert [f"--mode={mode}: " in every for mode in main.MODES] == [True] * len(main.MODES)
    assert "--mode=train: " not in page


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for mode in main.MODES:
        (FOLDER / f"{mode}.txt").write_text(help_text(mode, main.options_of(mode)) + "\n")
