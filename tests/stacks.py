"""Compares this interpreter's stack with another one's, on this machine: what one makes, the other uses.

    python -m tests.stacks /path/to/other/venv/bin/python

It prints the largest differences of: one step of the weights that ship; training to step 40 on one stack, on
the other, and begun on one and gone on with on the other; samples of each other's run folders and exports.
The exit status is 0 if all are within their limits.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.training.kill_and_resume import SETTINGS

ROOT = Path(__file__).parent.parent
HALF, WHOLE = 20, 40
# The largest difference of any value, where a value is of the order of 1.
LIMITS = {"x_theta": 1e-5, "u": 1e-5}


def python(interpreter: str, *arguments) -> None:
    """Runs an interpreter in the project's folder; its output is shown if it fails."""
    done = subprocess.run(
        [interpreter, *map(str, arguments)], cwd=ROOT, text=True, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{interpreter} {arguments[0]} failed:\n{done.stdout}")


# --- What is done in a process of each stack: files in, arrays out ---


def denoise(out: str) -> None:
    """x_theta and u of the weights that ship, at levels from the least noise to the most."""
    import tensorflow as tf

    from pdm_tf.experts import load, read_runs
    from pdm_tf.run import PRETRAINED

    denoiser = load(read_runs(PRETRAINED)).denoiser
    t = tf.constant([0, 10, 100, 250, 500, 750, 900, 999])
    z = np.random.default_rng(0).standard_normal((8, *denoiser.image_shape)).astype(np.float32)
    x, u = denoiser(tf.constant(z), t, tf.range(8))
    np.savez(out, x_theta=x, u=u)


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
    with np.load(f"{run_dir}/ema/step_{WHOLE:08d}.npz") as averages:
        np.savez(out, **{name: reader.get_tensor(name) for name in names}, **averages)


PARTS = {"denoise": denoise, "draw": draw, "state": state}


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
        python(self.interpreters[which], "main.py", f"--mode={mode}", "--strategy=cpu", *arguments)

    def train(self, which: int, run_dir: Path, steps: int) -> Path:
        changes = {**SETTINGS, "training.steps": steps, "network.base_channels": 64, "network.head_channels": 64}
        settings = [f"--set={key}={value}" for key, value in changes.items()]
        self.main(which, "train", f"--run_dir={run_dir}", *settings)
        return run_dir


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, float]:
    """The largest difference of each array; the names must be the same."""
    if one.keys() != other.keys():
        raise RuntimeError(f"not the same names: {sorted(one.keys() ^ other.keys())}")
    return {
        name: float(np.max(np.abs(one[name].astype(np.float64) - other[name].astype(np.float64))))
        for name in one
    }


def compare(interpreters: list[str], folder: Path, say=print) -> dict[str, float]:
    """The largest differences, by what is compared."""
    stacks, found = Stacks(interpreters, folder), {}
    found.update(difference(stacks.arrays(0, "denoise"), stacks.arrays(1, "denoise")))
    say(found)
    whole = [stacks.train(which, folder / f"whole{which}", WHOLE) for which in (0, 1)]
    states = [stacks.arrays(which, "state", whole[which]) for which in (0, 1)]
    d = difference(*states)
    say("trained", sorted(d.items(), key=lambda kv: -kv[1])[:8])
    for which in (0, 1):
        run = stacks.train(which, folder / f"begun{which}", HALF)
        stacks.train(1 - which, run, WHOLE)
        for w in (0, 1):
            d = difference(stacks.arrays(which, "state", run), states[w])
            say("begun on", which, "vs whole", w, sorted(d.items(), key=lambda kv: -kv[1])[:8])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other")
    parser.add_argument("--folder")
    if len(sys.argv) > 1 and sys.argv[1].startswith("--part="):
        PARTS[sys.argv[1].partition("=")[2]](*sys.argv[2:])
        sys.exit()
    o = parser.parse_args()
    p = Path(o.folder or tempfile.mkdtemp())
    p.mkdir(exist_ok=True)
    print(compare([sys.executable, o.other], p))
