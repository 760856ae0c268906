"""Patched Diffusion Models: python main.py --mode=train|sample|evaluate|analyze|export|page|describe.

Each mode has flags of its own; --mode=NAME --help lists those of one mode.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

if not (3, 9) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        "pdm_tf runs on Python 3.9 to 3.13 (no TensorFlow that fits has wheels for others); this is "
        f"{sys.version.split()[0]}. Install one, for instance with `uv python install 3.13` or "
        "`pyenv install 3.13`, then run `make setup PYTHON=/path/to/python3.13`."
    )

from absl import logging

from flags.options import HELP, help_text, parse_mode, parse_options
from pdm_tf import errors

MODES = ("train", "sample", "evaluate", "analyze", "export", "page", "describe")


def command(mode: str) -> ModuleType:
    """The file of a mode; no other's is imported."""
    return importlib.import_module(f"pdm_tf.commands.{mode}")


def options_of(mode: str) -> type:
    """The dataclass of a mode's options."""
    return command(mode).Options


def parse(arguments: list[str]) -> tuple[str, Any]:
    """The mode of a command line, and its options."""
    mode = parse_mode(arguments, MODES)
    return mode, parse_options(arguments, mode, MODES, options_of)


def run(arguments: list[str]) -> None:
    """Runs the mode of a command line, or prints the flags of that mode, or of all."""
    if HELP & set(arguments):
        mode = parse_mode(arguments, ("", *MODES))
        shown = [mode] if mode else MODES
        print(__doc__.strip(), *(help_text(mode, options_of(mode)) for mode in shown), sep="\n\n")
        return
    mode, options = parse(arguments)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # TFDS and TensorFlow report each file that they open otherwise
    command(mode).run(options)


def main(arguments: list[str]) -> int:
    """Runs a command line and returns its exit status."""
    return errors.run(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
