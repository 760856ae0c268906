"""Progress on stderr (a rate and the time left; few lines where stderr is a file), and the peak of memory."""

from __future__ import annotations

import multiprocessing
import re
import resource
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm


def bar(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A bar, dressed as all of this project are; arguments as of `tqdm`."""
    return tqdm(
        iterable, **{"dynamic_ncols": True, "mininterval": 0.5 if sys.stderr.isatty() else 20, **options}
    )


def skip(shown: tqdm, count: int) -> None:
    """Counts what an earlier command has done: the rate stays that of this one."""
    if not shown.disable:
        shown.initial += count
    shown.update(count)


def in_fresh_process(function: Callable, *arguments: Any) -> Any:
    """What a function of a module returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_resident(process: int | str = "self") -> float:
    """Peak resident memory of this process, or of another by its number where there is /proc, MiB.

    Read from VmHWM where the system has it: Linux's ru_maxrss includes the memory of the parent process at
    the time of the fork.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return int(re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)[1]) / 2**10
    except (OSError, TypeError):  # not Linux, or a kernel without VmHWM
        if process != "self":
            raise
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts in bytes
