"""Real runs that are killed or told to stop, and run again by the same command."""

import random
import signal
import subprocess

import pytest

from tests.training.kill_and_resume import command, compare, state_hashes, train_with_kills
from tests.training.processes import Training, metrics, newest_checkpoint

pytestmark = pytest.mark.timeout(3000)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The hashes that a run comes to if it is left alone."""
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(command(run_dir, 1), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return state_hashes(run_dir)


@pytest.mark.slow
def test_five_kills_leave_no_trace(uninterrupted, tmp_path, capsys):
    """At random moments, one of them while a checkpoint is being written; the same weights to the bit."""
    seed = random.randrange(1 << 30)
    print(f"random.Random({seed})")
    while_saving = train_with_kills(tmp_path, 1, 5, random.Random(seed), print)
    said = capsys.readouterr().out
    assert said.count(": killed; ") == 5 and while_saving == 1, said
    assert state_hashes(tmp_path) == uninterrupted, said


@pytest.mark.heavy
def test_two_kills_leave_no_trace_on_two_replicas(tmp_path):
    assert compare(kills=2, replicas=2, seed=random.randrange(1 << 30), folder=tmp_path)


@pytest.mark.heavy
@pytest.mark.parametrize("network", ["vit", "unet+crops", "unet+two_sizes", "vit+two_sizes", "student"])
def test_two_kills_leave_no_trace_in_other_networks(tmp_path, network):
    assert compare(2, 1, random.randrange(1 << 30), tmp_path, network=network)


@pytest.mark.slow
def test_sigterm_and_sigint_save_and_the_run_goes_on_where_it_stopped(tmp_path):
    run_dir, stopped = tmp_path / "run", 0
    for number in (signal.SIGTERM, signal.SIGINT):
        training = Training(run_dir, tmp_path / "log", **{"training.steps": 5000})
        training.reach(stopped + 10)
        training.process.send_signal(number)
        assert training.status(120) == 75
        stopped = newest_checkpoint(run_dir)
        assert training.last_line() == (
            f"stopped by {signal.Signals(number).name} at step {stopped}, all saved: run the same command to "
            "go on"
        )
    last = Training(run_dir, tmp_path / "log", **{"training.steps": stopped + 10})
    assert last.status() == 0 and f"resuming {run_dir} at step {stopped} of" in last.output()
    # No step is lost and none is done twice.
    steps = [line["step"] for line in metrics(run_dir) if "loss" in line]
    assert steps == list(range(1, stopped + 11))
