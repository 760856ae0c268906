"""Averages of any length from snapshots of a few, against sums over a stored history of weights."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.averages import gamma_of, profile, reconstruct
from pdm_tf.errors import UserError
from pdm_tf.run import RunFolder
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.weights import read_arrays, write_arrays
from tests.tiny_runs import tiny_config

LENGTHS = (0.05, 0.1)
UPDATES, EVERY = 400, 5


def history():
    """Weights that move as those of a training: a way that slows down, and noise. float32 (UPDATES, 50)."""
    generator, t = np.random.default_rng(3), np.arange(1, UPDATES + 1)[:, None]
    way = np.cumsum(generator.normal(size=(UPDATES, 50)) / np.sqrt(t), axis=0)
    return (way + 0.3 * generator.normal(size=(UPDATES, 50))).astype(np.float32)


HISTORY = history()


@pytest.fixture(scope="module")
def make_run(tmp_path_factory):
    """A function: number of snapshots -> the run that took HISTORY and wrote so many; made once."""
    made = {}

    def make(snapshots: int) -> RunFolder:
        if snapshots not in made:
            made[snapshots] = write(RunFolder(tmp_path_factory.mktemp(f"run{snapshots}")), snapshots)
        return made[snapshots]

    return make


def write(run: RunFolder, snapshots: int, lengths=LENGTHS, updates=UPDATES) -> RunFolder:
    run.write_config(tiny_config(training__ema_lengths=lengths, training__ema_every=EVERY))
    variable = tf.Variable(tf.zeros(50), name="network/kernel")
    ema = ExponentialMovingAverage([variable], 0.9, lengths=lengths)
    for number in range(updates):
        variable.assign(HISTORY[number])
        ema.update(number)
        if (number + 1) % -(-updates // snapshots) == 0 or number + 1 == updates:
            for length in lengths:
                ema.save(run.snapshot(length, (number + 1) * EVERY), length)
    return run


def weights(run: RunFolder, length: float) -> np.ndarray:
    return reconstruct(run, length).arrays()["network/kernel"]


def brute_force(length: float, updates: int = UPDATES) -> np.ndarray:
    """The recursion of Eq. 3 over the whole history, in float64."""
    average, power = np.zeros(50), gamma_of(length) + 1
    for t in range(1, updates + 1):
        beta = (1 - 1 / t) ** power
        average = beta * average + (1 - beta) * HISTORY[t - 1]
    return average


def error(run: RunFolder, length: float) -> float:
    """How far a reconstruction is off, as a part of how far apart the averages of other lengths are."""
    scale = np.linalg.norm(brute_force(0.05) - brute_force(0.1))
    return np.linalg.norm(weights(run, length) - brute_force(length)) / scale


@pytest.mark.parametrize("length", [0.01, 0.25])
def test_a_length_is_the_deviation_of_the_shares_as_a_part_of_the_run(length):
    tau, share = (np.arange(100_000) + 0.5) / 100_000, profile(length, 100_000, 100_000)
    mean = share @ tau
    assert share.sum() == pytest.approx(1, abs=1e-12)
    assert np.sqrt(share @ (tau - mean) ** 2) == pytest.approx(length, rel=1e-5)
    gamma = gamma_of(length)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_that_was_kept_comes_back_as_it_was(make_run, length):
    run = make_run(16)
    made = reconstruct(run, length)
    assert made.step == UPDATES * EVERY and made.misplaced < 1e-9
    snapshot = read_arrays(run.snapshot(length, made.step))["network/kernel"]
    np.testing.assert_array_equal(weights(run, length), snapshot)
    np.testing.assert_allclose(snapshot, brute_force(length), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [0.03, 0.2])
def test_another_length_is_near_the_average_that_was_not_kept_and_nearer_with_more_snapshots(
    make_run, length
):
    errors = [error(make_run(snapshots), length) for snapshots in (8, 16, 32)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.03
    told = [reconstruct(make_run(snapshots), length).misplaced for snapshots in (8, 16, 32)]
    assert told[0] > told[1] > told[2] and told[2] < 0.01


@pytest.mark.parametrize("length", [0.01, 0.25])
def test_with_a_snapshot_of_every_update_any_length_is_exact(tmp_path, length):
    """Sums, not integrals: twelve updates are far from a smooth profile."""
    run = write(RunFolder(tmp_path), snapshots=12, updates=12)
    assert reconstruct(run, length).misplaced < 1e-9
    np.testing.assert_allclose(weights(run, length), brute_force(length, 12), rtol=1e-4, atol=1e-5)


def refusal(run, length):
    with pytest.raises(UserError) as caught:
        weights(run, length)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_made_is_refused_in_one_line(make_run, tmp_path):
    for length in (0.009, 0.3):
        assert f"length {length}: use a length of 0.01 to 0.25" in refusal(make_run(16), length)
    message = refusal(make_run(8), 0.01)
    assert (
        message.startswith(f"{make_run(8)}: ") and "% of an average of length 0.01 at step 2,000" in message
    )
    assert "with 16 snapshots to make it from: use a length nearer to those kept (0.05,0.1)" in message
    run = RunFolder(tmp_path)
    run.write_config(tiny_config())
    assert "kept no snapshots (training.ema_lengths): take its own" in refusal(run, 0.1)


@pytest.fixture
def broken(tmp_path):
    """A run to break, with its files of length 0.05."""
    run = write(RunFolder(tmp_path), snapshots=4, updates=40)
    return run, [run.snapshot(0.05, step) for step in run.snapshot_steps(0.05)]


def test_a_damaged_snapshot_is_named_and_the_others_do_without_it(broken):
    run, files = broken
    content = bytearray(files[2].read_bytes())
    content[len(content) // 2] ^= 1
    files[2].write_bytes(content)
    assert f"{files[2]} is damaged" in refusal(run, 0.07)
    files[2].unlink()
    assert reconstruct(run, 0.07).step == 40 * EVERY
    files[-1].unlink()  # no more the newest of all lengths
    assert reconstruct(run, 0.07).step == 20 * EVERY


def test_a_snapshot_of_another_network_is_named(broken):
    run, files = broken
    write_arrays(files[1], {"network/kernel": np.zeros(49, np.float32)})
    assert f"{files[1]} holds the weights of another network than {files[0]}" in refusal(run, 0.07)
