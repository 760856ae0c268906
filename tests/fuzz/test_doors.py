"""Whatever comes to a door is taken, or refused in one line: by fixed seeds, in processes of many cases.

    python -m tests.fuzz.test_doors DOOR FIRST STOP FOLDER

is such a process. Its last line is JSON: how many cases were taken and refused, and what of them was neither.
The case that it is at stands in FOLDER/case, for whoever finds it dead.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
PROCESSES = 2
CASE_SECONDS = 30  # of the processor: the machine may be busy with other things
MEMORY = 12 << 30
CASES = {
    "image_files": 2000,
    "shards": 110,
    "archives": 100,
    "checkpoints": 60,
}


@pytest.mark.parametrize("door", CASES)
def test_only_success_or_one_line(door, tmp_path, repository):
    count = CASES[door]
    processes = []
    for number in range(PROCESSES):
        first, stop = number * count // PROCESSES, (number + 1) * count // PROCESSES
        module = [sys.executable, "-m", "tests.fuzz.test_doors"]
        command = [*module, door, str(first), str(stop), str(tmp_path / f"{number}")]
        with open(tmp_path / f"{number}.log", "w") as log:
            process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=log, text=True)
        processes.append(process)
    taken = refused = 0
    mistakes = []
    for number, process in enumerate(processes):
        out, _ = process.communicate()
        case, log = tmp_path / f"{number}/case", tmp_path / f"{number}.log"
        assert process.returncode == 0, f"{door} died of case {case.read_text()}: {log.read_text()[-2000:]}"
        found = json.loads(out.splitlines()[-1])
        taken += found["taken"]
        refused += found["refused"]
        mistakes += found["mistakes"]
    print(f"{door}: {count} cases, {taken} taken, {refused} refused, {len(mistakes)} mistakes")
    assert not mistakes, "\n".join(f"case {number}: {text}" for number, text in mistakes[:10])
    # It is damage, and some of it is found.
    assert taken + refused == count and refused > count / 20


class TooLong(BaseException):
    """A case takes more than `CASE_SECONDS`; no handler of errors takes it for one."""


def _end(_number, _frame):
    raise TooLong


def try_cases(door: str, first: int, stop: int, folder: Path) -> dict:
    """Tries the cases `first` to `stop` - 1; returns what is printed."""
    import pdm_tf  # noqa: F401 (before TensorFlow: it sets its environment)
    from pdm_tf.errors import UserError
    from tests.fuzz.doors import DOORS

    folder.mkdir(parents=True, exist_ok=True)
    case = DOORS[door](folder)
    signal.signal(signal.SIGPROF, _end)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = {"taken": 0, "refused": 0, "mistakes": []}
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
    return found


if __name__ == "__main__":
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3")
    door, first, stop, folder = sys.argv[1:]
    print(json.dumps(try_cases(door, int(first), int(stop), Path(folder).absolute())))
