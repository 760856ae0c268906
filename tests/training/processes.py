"""Real training processes for tests: `main.py` on a tiny network, alone or as workers of a cluster."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.training.kill_and_resume import SETTINGS, last_step

ROOT = Path(__file__).parent.parent.parent
START_SECONDS = 400  # for TensorFlow to start and trace on a machine that is busy with other things


def start(cluster, index, *arguments, log) -> subprocess.Popen:
    """`main.py` as worker `index` of a cluster (addresses), or alone, its output in the file `log`."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    environment.pop("TF_CONFIG", None)
    strategy = "cpu"
    if cluster:
        task = {"type": "worker", "index": index}
        environment["TF_CONFIG"] = json.dumps({"cluster": {"worker": cluster}, "task": task})
        environment["PDM_TF_CONNECT_SECONDS"] = str(START_SECONDS)
        strategy = "multi_worker"
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, "main.py", f"--strategy={strategy}", *arguments], cwd=ROOT, env=environment,
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip


class Training:
    """A `main.py --mode=train` in `run_dir`, its output kept in `log`."""

    def __init__(self, run_dir, log, cluster=None, index=0, **changes):
        """With a `cluster` (addresses) it is its worker `index`."""
        self.log, self.run_dir = Path(log), Path(run_dir)
        settings = [f"--set={key}={value}" for key, value in {**SETTINGS, **changes}.items()]
        self.process = start(cluster, index, f"--run_dir={run_dir}", *settings, log=log)

    def status(self, seconds: float = START_SECONDS) -> int:
        """The exit status, waited for at most so long."""
        return self.process.wait(seconds)

    def reach(self, step: int) -> None:
        """Waits until the run's metrics have come to a step."""
        self._wait_until(lambda: last_step(self.run_dir) >= step)

    def reach_line(self, count: int) -> None:
        """Waits until there are so many lines of metrics; a resumed run writes some steps once more."""
        self._wait_until(lambda: len(metrics(self.run_dir)) >= count)

    def _wait_until(self, reached) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not reached():
            assert self.process.poll() is None, self.output()[-3000:]
            assert time.monotonic() < deadline, f"it takes too long: {self.output()[-3000:]}"
            time.sleep(0.05)

    def output(self) -> str:
        return self.log.read_text().replace("\r", "\n")

    def last_line(self) -> str:
        return self.output().strip().splitlines()[-1]


def addresses(count: int = 2) -> list:
    """Free addresses on loopback."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    made = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return made


def metrics(run_dir: Path) -> list:
    """The whole lines of the run's metrics; the last one may just be being written."""
    whole, _, _ = (run_dir / "logs/metrics.jsonl").read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def newest_checkpoint(run_dir: Path) -> int:
    return max(int(path.name[5:]) for path in run_dir.glob("checkpoints/step_*"))
