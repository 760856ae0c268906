"""What goes wrong and how a program ends of it: one error type, one table of exit statuses, one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

EXIT_DONE = 0
EXIT_USER_ERROR = 2  # something to mend, said in one line
EXIT_STOPPED = 75  # "temporary failure": stopped by a signal; the same command goes on


class UserError(ValueError):
    """Something the user can mend: a wrong setting, missing data, a damaged file.

    Its message is one line that says what is wrong and what to do. Command-line programs print that
    line and end with a non-zero status instead of showing a traceback.
    """


class Stopped(Exception):  # noqa: N818 (not an error: somebody asked for it)
    """A signal ended the work at a good place; its message is one line that says how to go on."""


def one_line(error: BaseException) -> str:
    """An exception's message on one line of 300 characters at most; its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def run(main: Callable[[], None]) -> int:
    """Runs a program's main function and returns its exit status; what ends it early is one line."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except Stopped as stopped:
        print(stopped)
        return EXIT_STOPPED
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on with what is done", file=sys.stderr)
        return EXIT_STOPPED
    return EXIT_DONE
