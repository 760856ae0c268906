"""Our forward pass and train step beside diffusers' UNet2DModel on the same patched grid, in one run.

    python3.11 -m venv .venv-peers && .venv-peers/bin/pip install -r requirements-peers.txt
    python -m benchmarks.peers [--peers_python=.venv-peers/bin/python] [--batch=8] [--repeats=9]

The network is the design's yardstick: 64 x 64, P = 2, c = 64, multipliers 1,2,2, 2 blocks a level, attention
on grids of 16 and 8; parameters are equal within 1%. Ours also predicts u, its variance. float32, all cores.

The peers live in an environment of their own, one process each, which waits while another has its turn: the
variants run in turn, again and again, so that a change of the machine's speed hits all of them. A ratio is
the median over the turns of (a peer's seconds / ours), its spread the quartiles. The peer runs as its user
runs it (eager), in the memory format that PyTorch recommends for convolutions, and compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.unet import forward_of, make_network, seconds, train_step_of
from pdm_tf import stack
from pdm_tf.networks.group_norm import GroupNorm

MODES = ("eager", "channels_last", "compiled")


class Peer:
    """A process of the peers' environment that runs one variant when it is asked to."""

    def __init__(self, python: str, kind: str, mode: str, batch: int):
        script = Path(__file__).with_name("peers_torch.py")
        command = [python, str(script), kind, mode, str(batch)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        first = self.process.stdout.readline()
        if not first:
            raise SystemExit(f"{' '.join(command)} does not run: see requirements-peers.txt")
        self.said = json.loads(first)

    def seconds(self) -> float:
        """Wall time of a call."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def compare(kind: str, make, options: argparse.Namespace) -> None:
    """Prints the rows of one kind of call."""
    network = make_network("float32", GroupNorm)
    run = make(network, options.batch)
    peers = {mode: Peer(options.peers_python, kind, mode, options.batch) for mode in options.modes}
    ours = sum(int(np.prod(v.shape)) for v in network.trainable_variables)
    if kind == "forward":
        for peer in list(peers.values())[:1]:
            print(f"{peer.said['what']}: {peer.said['parameters']:,} parameters; ours: {ours:,}")
    seconds(run)
    times = {name: [] for name in ("ours", *peers)}
    for _ in range(options.repeats):
        times["ours"].append(seconds(run))
        for mode, peer in peers.items():
            times[mode].append(peer.seconds())
    for peer in peers.values():
        peer.close()
    for name, values in times.items():
        low, ratio, high = np.percentile(np.array(values) / np.array(times["ours"]), (25, 50, 75))
        rate = options.batch / np.median(values)
        print(
            f"{kind:8}  {name:14} {rate:6.1f} images/s   ours is {ratio:.2f} x ({low:.2f} to {high:.2f})",
            flush=True,
        )


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers_python", default=".venv-peers/bin/python")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    options = parser.parse_args()
    onednn = "on" if stack.onednn_is_on() else "off"
    cores = len(os.sched_getaffinity(0))
    print(f"TensorFlow {tf.__version__}, oneDNN {onednn}, {cores} cores, batch {options.batch}, float32")
    compare("forward", forward_of, options)
    compare("train", train_step_of, options)


if __name__ == "__main__":
    main()
