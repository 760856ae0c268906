"""Finished parts of long work, kept until all of it is done, so that a command goes on after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pdm_tf.atomic import atomic_text, remove_tree
from pdm_tf.errors import UserError
from pdm_tf.paths import as_path, entries
from pdm_tf.progress import bar
from pdm_tf.weights import read_arrays, write_arrays

PREFIX = ".unfinished-"
IDENTITY = "identity.json"


class Ledger:
    """Named parts of one piece of work, each some arrays in a file that is whole or not there.

    The files lie in a hidden folder whose name is a digest of the work's identity: other work never mixes in.
    The first part makes it.
    """

    def __init__(self, folder: str | os.PathLike, identity: Mapping[str, Any]):
        """`folder` holds the ledger's; `identity` is all that decides the parts, as JSON values."""
        self._identity = json.dumps(identity, indent=1, sort_keys=True) + "\n"
        digest = hashlib.sha256(self._identity.encode(errors="surrogateescape")).hexdigest()
        self.folder = as_path(folder) / f"{PREFIX}{digest[:16]}"

    def names(self) -> set[str]:
        return _names(self.folder)

    def read(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a finished part; UserError if its file is damaged."""
        return read_arrays(self.folder / f"{name}.npz")

    def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps a part. A name may not hold a slash."""
        if not (self.folder / IDENTITY).exists():
            atomic_text(self.folder / IDENTITY, self._identity)
        write_arrays(self.folder / f"{name}.npz", arrays)

    def remove(self) -> None:
        """Removes all parts: the work is done."""
        remove_tree(self.folder)


def note_others(folder: str | os.PathLike, ledgers: Sequence[Ledger]) -> None:
    """Prints a note about each ledger in `folder` that is none of these: other commands did not finish."""
    known = {ledger.folder for ledger in ledgers}
    for entry in entries(as_path(folder)):
        if entry.name.startswith(PREFIX) and entry not in known:
            print(
                f"note: {entry} holds {len(_names(entry))} finished parts of another, unfinished command; "
                "delete it if you will not run that again"
            )


def _names(folder: os.PathLike) -> set[str]:
    return {
        entry.stem for entry in entries(folder) if entry.suffix == ".npz" and not entry.name.startswith(".")
    }


@dataclasses.dataclass(frozen=True)
class Share:
    """Which parts of some work one of several processes does, on machines that share a disk.

    Each process does its own parts and waits for nobody; process 0 then waits for the parts of the others.
    """

    number: int = 0  # of this process
    workers: int = 1  # how many there are
    patience: float = 300.0  # seconds to wait for the next part, beside the time that ten of its own take

    def of(self, parts: Sequence[Any]) -> Sequence[Any]:
        """Every `workers`-th of some parts, from the `number`-th on."""
        return parts[self.number :: self.workers]

    def finish(self, ledger: Ledger, names: Sequence[str], parts: Iterable) -> None:
        """Does this process's parts, each as `parts` is advanced; process 0 then waits for all others.

        `names` are those of all parts, in the order of `of`. UserError if none comes for too long.
        """
        seconds = 0.0
        begin = time.monotonic()
        for _ in parts:
            seconds = time.monotonic() - begin  # of the last one: the first one traces a graph
            begin = time.monotonic()
        if self.number or self.workers == 1:
            return
        limit = self.patience + 10 * seconds
        missing = self._missing(ledger, names)
        last_came = time.monotonic()
        with bar(total=len(names), initial=len(names) - len(missing), unit="part", desc="wait") as shown:
            while missing:
                if time.monotonic() - last_came > limit:
                    workers = sorted({number % self.workers for number in missing})
                    raise UserError(
                        f"{len(missing)} of {len(names)} parts are missing, and for {limit:.0f} s no new one "
                        f"has come (workers {', '.join(map(str, workers))} of {self.workers}): run the same "
                        "command again on all workers, on devices of one kind; what is done is kept"
                    )
                time.sleep(0.5)  # at least once, so that who wrote the last one is done with the folder
                left = self._missing(ledger, names)
                if len(left) < len(missing):
                    last_came = time.monotonic()
                shown.update(len(missing) - len(left))
                missing = left

    @staticmethod
    def _missing(ledger: Ledger, names: Sequence[str]) -> list[int]:
        """The places of the parts that are not there."""
        there = ledger.names()
        return [number for number, name in enumerate(names) if name not in there]
