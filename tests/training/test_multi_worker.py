"""Two real processes on loopback, as workers of one MultiWorkerMirroredStrategy."""

import pytest

from tests.training.processes import Training, addresses, metrics, newest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
# Dropout is keyed by the replica, so it is left out where runs on one and on two replicas are compared.
SAME = {
    "training.steps": 12,
    "training.eval_every": 6,
    "network.dropout": 0.0,
    "training.precision": "float32",  # in bfloat16 the order of a sum shows in the third digit
}


@pytest.fixture
def start_both(tmp_path):
    """Starts both workers on the run folder `shared`; ends what is left of them after the test."""
    started = []

    def start(name, **changes):
        cluster = addresses()
        both = [
            Training(tmp_path / "shared", tmp_path / f"{name}{i}.log", cluster, i, **changes)
            for i in range(2)
        ]
        started.extend(both)
        return both

    yield start
    for training in started:
        training.process.kill()
        training.process.wait()


def test_two_workers_lose_what_one_process_loses(start_both, tmp_path):
    """Training and held-out losses, to a relative 1e-5 over 12 steps.

    Rounding differs, and in longer runs Adam turns the rounding of gradients near zero into whole steps.
    """
    assert Training(tmp_path / "alone", tmp_path / "alone.log", **SAME).status() == 0
    both = start_both("both", **SAME)
    assert [worker.status() for worker in both] == [0, 0], both[0].output()[-3000:]
    alone, together = metrics(tmp_path / "alone"), metrics(tmp_path / "shared")
    # One writer: each line once, in one file of events.
    assert [line["step"] for line in together] == [line["step"] for line in alone]
    assert len(list((tmp_path / "shared/logs").glob("events*"))) == 1
    for one, two in zip(alone, together):
        for name in one:
            if name not in ("images_per_second", "preview_seconds"):  # how fast they were
                assert two[name] == pytest.approx(one[name], rel=1e-5), (one["step"], name)
    assert sum("validation/loss" in line for line in together) == 2
    assert newest_checkpoint(tmp_path / "shared") == 12


def test_a_lost_worker_ends_the_other_and_the_same_command_resumes_both(start_both, tmp_path):
    endless = {"training.steps": 5000, "training.eval_every": 5000, "training.checkpoint_every": 5}
    both = start_both("killed", **endless)
    both[0].reach(12)
    both[1].process.kill()
    assert both[0].status(60) == 2
    assert both[0].last_line() == (
        "error: lost worker 1: this worker ends too; start all of them again with the same command to go on "
        "from the last checkpoint"
    )
    assert "Traceback" not in both[0].output()
    saved = newest_checkpoint(tmp_path / "shared")
    assert saved >= 10

    lines = len(metrics(tmp_path / "shared"))
    both = start_both("resumed", **endless)
    both[0].reach_line(lines + 3)
    assert metrics(tmp_path / "shared")[lines]["step"] == saved + 1
    both[1].process.terminate()
    assert [worker.status(120) for worker in both] == [75, 75]
    stopped = newest_checkpoint(tmp_path / "shared")
    assert stopped == metrics(tmp_path / "shared")[-1]["step"] >= saved + 3
    for worker, signal in zip(both, ("a signal to another worker", "SIGTERM")):
        assert f"resuming {tmp_path / 'shared'} at step {saved} of 5,000" in worker.output()
        assert worker.last_line() == (
            f"stopped by {signal} at step {stopped}, all saved: run the same command to go on"
        )
