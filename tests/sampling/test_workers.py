"""Two real processes that share out the images of one command."""

import signal
import time

import pytest

from tests.tiny_runs import write_run
from tests.training.processes import START_SECONDS, addresses, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run_all(*processes):
    for process in processes:
        assert process.wait(START_SECONDS) == 0


def test_two_workers_write_what_one_writes_and_a_killed_one_goes_on(tmp_path):
    run, cluster = write_run(tmp_path / "run"), addresses()
    common = [
        "--mode=sample", f"--run_dir={run}", "--num_samples=40", "--sample_batch_size=4", "--steps=100",
        "--save_pngs",
    ]  # fmt: skip

    def worker(index, log, cluster=cluster, out="both"):
        return start(cluster, index, *common, f"--out={tmp_path / out}", log=tmp_path / log)

    run_all(worker(0, "alone.log", None, "alone"))
    first, second = worker(0, "0.log"), worker(1, "1.log")
    odd = [f"both/.unfinished-*/batch_{start:08d}.npz" for start in range(4, 40, 8)]
    while sum(bool(list(tmp_path.glob(name))) for name in odd) < 2:
        assert second.poll() is None, (tmp_path / "1.log").read_text()
        time.sleep(0.01)
    second.send_signal(signal.SIGKILL)
    second.wait()
    assert first.poll() is None and not (tmp_path / "both/samples.npz").exists()
    run_all(worker(1, "1_again.log"), first)
    assert "of 5 batches are done already" in (tmp_path / "1_again.log").read_text()
    assert "worker 1 of 2: its share is drawn; worker 0 writes" in (tmp_path / "1_again.log").read_text()
    alone, both = (
        {p.name: p.read_bytes() for p in (tmp_path / out).rglob("*") if p.is_file()}
        for out in ("alone", "both")
    )
    assert both == alone and len(both) == 43
