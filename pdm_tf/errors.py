"""What goes wrong and how a program ends of it: one error type, one table of exit statuses, one line."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

EXIT_DONE = 0
EXIT_USER_ERROR = 2  # something to mend, said in one line
EXIT_STOPPED = 75  # "temporary failure": stopped by a signal; the same command goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class UserError(ValueError):
    """Something the user can mend: a wrong setting, missing data, a damaged file.

    Its message is one line that says what is wrong and what to do. Command-line programs print that
    line and end with a non-zero status instead of showing a traceback.
    """

    def __str__(self) -> str:
        # It may quote a file's name or a word of a command line that has several.
        return " ".join(super().__str__().splitlines())


class Stopped(Exception):  # noqa: N818 (not an error: somebody asked for it)
    """A signal ended the work at a good place; its message is one line that says how to go on."""


def one_line(error: BaseException | str) -> str:
    """A message on one line of at most 300 characters that can be shown; its type where it has none."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; TensorFlow's error of that kind is a full disk's, too."""
    texts = ("oom when allocating", "out of memory", "failed to allocate")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)


def run(main: Callable[[], None]) -> int:
    """Runs a program's main function and returns its exit status; what ends it early is one line.

    Names that the terminal's encoding does not have are shown with escapes, in place of a UnicodeEncodeError.
    SIGTERM ends it as Ctrl-C does; a second signal of either kind ends the process at once. Output that
    nobody can take (a reader that is gone, a log on a full disk) is dropped, and the work goes on.
    """
    with _lasting_streams():
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            with first_signal(_interrupt):
                main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USER_ERROR
        except OSError as error:
            # What the system refuses, and nobody knew more about, is no mistake of the program's.
            print(f"error: {one_line(error)}: mend that, then run the same command again", file=sys.stderr)
            return EXIT_USER_ERROR
        except Stopped as stopped:
            print(stopped)
            return EXIT_STOPPED
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            advice = "take fewer images at a time; docs/troubleshooting.md lists what else saves memory"
            print(f"error: out of memory: {advice} ({one_line(error)})", file=sys.stderr)
            return EXIT_USER_ERROR
        except KeyboardInterrupt as interrupt:
            how = f"stopped by {interrupt}" if str(interrupt) else "interrupted"
            print(f"{how}: run the same command to go on with what is done", file=sys.stderr)
            return EXIT_STOPPED
        return EXIT_DONE


class _LastingStream:
    """A text stream whose file becomes /dev/null once it cannot be written to."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _open_null(self._stream.fileno())
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _open_null(self._stream.fileno())


def _open_null(number: int) -> None:
    """Makes a file descriptor one of /dev/null, for whatever in the process writes to it."""
    null = os.open(os.devnull, os.O_WRONLY)
    if null != number:
        os.dup2(null, number)
        os.close(null)


@contextlib.contextmanager
def _lasting_streams() -> Iterator[None]:
    """Inside the block no write to stdout or stderr fails, also where they were closed from the start."""
    before = sys.stdout, sys.stderr
    for number, name in enumerate(("stdout", "stderr"), start=1):
        if getattr(sys, name) is None:
            _open_null(number)  # or the next file that is opened would be the program's stderr
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115 (it is for the whole block)
        setattr(sys, name, _LastingStream(getattr(sys, name)))
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _interrupt(name: str) -> None:
    raise KeyboardInterrupt(name)


@contextlib.contextmanager
def first_signal(handle: Callable[[str], None]) -> Iterator[None]:
    """Calls `handle` with the name of the first SIGINT or SIGTERM inside the block.

    For the next one the system ends the process, even inside a call that Python waits for.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    owner = os.getpid()

    def handler(number, _frame):
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() != owner:  # a forked worker has its parent's handlers, and dies of the signal as any
            os.kill(os.getpid(), number)
        handle(signal.Signals(number).name)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
