"""Compares this interpreter's stack with another one's, on this machine: what one makes, the other uses.

    python -m tests.stacks /path/to/other/venv/bin/python

It prints the largest differences of: training to step 40 on one stack, on the other, and begun on one and
gone on with on the other; samples of each other's run folders and exports.
The exit status is 0 if all are within their limits. It takes four minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.training.kill_and_resume import SETTINGS

ROOT = Path(__file__).parent.parent
HALF, WHOLE = 20, 40
# With two channels a group of GroupNorm. With one, the bias before it has no gradient but rounding, which
# Adam blows up to steps of the full size: a random walk on either stack, in numbers that change nothing.
TRAINED = {**SETTINGS, "network.base_channels": 64, "network.head_channels": 64}
# As little does a key's bias change under a softmax, so this one is left out.
WITHOUT_GRADIENT = "query_key_value/bias"
# The largest differences there may be: of images in their 256 levels, of all else relative
# to the norm of its array.
LIMITS = {"loss": 1e-5, "state": 1e-4, "image": 1}


def python(interpreter: str, *arguments) -> None:
    """Runs an interpreter in the project's folder; its output is shown if it fails."""
    done = subprocess.run(
        [interpreter, *map(str, arguments)], cwd=ROOT, text=True, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{interpreter} {arguments[0]} failed:\n{done.stdout}")


# --- What is done in a process of each stack: files in, arrays out ---


def draw(folder: str, out: str) -> None:
    """Images of an export."""
    import tensorflow as tf

    sample = tf.saved_model.load(folder).signatures["sample"]
    labels = tf.constant([0, 3, 5, 7])
    np.savez(out, **sample(seed=tf.constant(1), labels=labels, guidance=tf.constant(1.5)))


def state(run_dir: str, out: str) -> None:
    """All numbers of a run's last checkpoint and of its averages."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(f"{run_dir}/checkpoints/step_{WHOLE:08d}/state")
    names = [name for name in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in name]
    arrays = {name.replace("/.ATTRIBUTES/VARIABLE_VALUE", ""): reader.get_tensor(name) for name in names}
    with np.load(f"{run_dir}/ema/step_{WHOLE:08d}.npz") as averages:
        arrays.update(averages)
    np.savez(out, **{name: array for name, array in arrays.items() if WITHOUT_GRADIENT not in name})


PARTS = {"draw": draw, "state": state}


# --- The comparison ---


class Stacks:
    """Two interpreters, and a folder for what they make."""

    def __init__(self, interpreters: list[str], folder: Path):
        self.interpreters, self.folder = interpreters, folder

    def arrays(self, which: int, part: str, *arguments) -> dict[str, np.ndarray]:
        """What a part gives on a stack."""
        out = self.folder / "arrays.npz"
        python(self.interpreters[which], "-m", "tests.stacks", f"--part={part}", *arguments, out)
        with np.load(out) as arrays:
            return dict(arrays)

    def main(self, which: int, mode: str, *arguments) -> None:
        python(self.interpreters[which], "main.py", f"--mode={mode}", *arguments)

    def train(self, which: int, run_dir: Path, steps: int) -> None:
        settings = {**TRAINED, "training.steps": steps}
        words = [f"--set={key}={value}" for key, value in settings.items()]
        self.main(which, "train", f"--run_dir={run_dir}", *words)

    def losses(self, run_dir: Path) -> dict[str, np.ndarray]:
        """The loss of each step of a run."""
        lines = (run_dir / "logs/metrics.jsonl").read_text().splitlines()
        losses = {entry["step"]: entry["loss"] for entry in map(json.loads, lines) if "loss" in entry}
        assert list(losses) == list(range(1, WHOLE + 1))
        return {"loss": np.array(list(losses.values()))}

    def images(self, which: int, run_dir: Path) -> dict[str, np.ndarray]:
        """What a stack draws from a run folder."""
        out = self.folder / f"{run_dir.name}_by{which}"
        numbers = ["--num_samples=4", "--sample_batch_size=4", "--steps=5"]
        self.main(which, "sample", f"--run_dir={run_dir}", f"--out={out}", *numbers)
        with np.load(out / "samples.npz") as samples:
            return dict(samples)


def furthest(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest difference of any two numbers of the same name and place."""
    return max(np.max(np.abs(a - b)) for a, b in _pairs(one, other))


def furthest_of_norms(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest norm of an array's difference, relative to the array's own."""
    return max(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0) for a, b in _pairs(one, other))


def _pairs(one: dict, other: dict) -> list[tuple[np.ndarray, np.ndarray]]:
    assert one.keys() == other.keys(), f"not the same names: {sorted(one.keys() ^ other.keys())}"
    return [(array.astype(np.float64), other[name].astype(np.float64)) for name, array in one.items()]


Finding = tuple[str, float, float]  # what was compared, the largest difference, and its limit


def compare(interpreters: list[str], folder: Path) -> Iterator[Finding]:
    """Lets two stacks use what the other made, in a folder, and says how far apart they come out."""
    stacks = Stacks(interpreters, folder)
    runs = [folder / f"run{which}" for which in (0, 1)]
    for which in (0, 1):
        stacks.train(which, runs[which], WHOLE)
    losses = [stacks.losses(run) for run in runs]
    states = [stacks.arrays(which, "state", runs[which]) for which in (0, 1)]
    yield f"losses of {WHOLE} steps", furthest_of_norms(*losses), LIMITS["loss"]
    yield f"state after {WHOLE} steps", furthest_of_norms(*states), LIMITS["state"]

    for which, other in ((0, 1), (1, 0)):
        run, what = folder / f"begun_on{which}", f"of a run begun on stack {which} and ended on {other}"
        stacks.train(which, run, HALF)
        stacks.train(other, run, WHOLE)
        loss, state = stacks.losses(run), stacks.arrays(other, "state", run)
        yield f"losses {what}", furthest_of_norms(loss, losses[which]), LIMITS["loss"]
        yield f"state {what}", furthest_of_norms(state, states[which]), LIMITS["state"]

    for which in (0, 1):
        pair = [stacks.images(drawing, runs[which]) for drawing in (0, 1)]
        yield f"samples of stack {which}'s run", furthest(*pair), LIMITS["image"]
        model = folder / f"model{which}"
        stacks.main(which, "export", f"--run_dir={runs[which]}", f"--out={model}", "--steps=5")
        pair = [stacks.arrays(drawing, "draw", model) for drawing in (0, 1)]
        yield f"images of stack {which}'s export", furthest(*pair), LIMITS["image"]


def main() -> int:
    """Compares and prints; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("other", help="the interpreter of an environment with the other stack")
    options, equal = parser.parse_args(), True
    with tempfile.TemporaryDirectory() as made:
        for what, value, limit in compare([sys.executable, options.other], Path(made)):
            print(f"{what}: {value:.2g} (at most {limit:g})", flush=True)
            equal &= value <= limit
    print("equal" if equal else "NOT equal")
    return not equal


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].startswith("--part="):
        PARTS[sys.argv[1].partition("=")[2]](*sys.argv[2:])
    else:
        sys.exit(main())
