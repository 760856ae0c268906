"""Progress on stderr: a rate and the time left; few lines where stderr is a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
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
