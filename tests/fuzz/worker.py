"""A process that tries many cases of a door: python -m tests.fuzz.worker DOOR FIRST STOP FOLDER

Its last line is JSON: how many cases were taken and refused, and what of them was neither. The case that it
is at stands in FOLDER/case, for whoever finds it dead.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
CASE_SECONDS = 30  # of the processor: the machine may be busy with other things
MEMORY = 12 << 30


class TooLong(BaseException):
    """A case takes more than `CASE_SECONDS`; no handler of errors takes it for one."""


def _end(_number, _frame):
    raise TooLong


def main(door: str, first: int, stop: int, folder: Path) -> dict:
    """Tries the cases `first` to `stop` - 1; returns what is printed."""
    import pdm_tf  # noqa: F401 (before TensorFlow: it sets its environment)
    from pdm_tf.errors import UserError
    from tests.fuzz.doors import DOORS

    folder.mkdir(parents=True, exist_ok=True)
    case = DOORS[door](folder)
    signal.signal(signal.SIGPROF, _end)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found, begin = {"taken": 0, "refused": 0, "mistakes": []}, time.monotonic()
    for number in range(first, stop):
        (folder / "case").write_text(str(number))
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
        try:
            case(random.Random(f"{door} {number}"))
            found["taken"] += 1
        except UserError as error:
            found["refused"] += 1
            if "\n" in str(error) or not str(error):
                found["mistakes"].append([number, f"not one line: {error!r}"])
        except (Exception, TooLong):
            found["mistakes"].append([number, traceback.format_exc()[-1500:]])
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return {**found, "seconds": round(time.monotonic() - begin)}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]).absolute())))
