"""Our forward pass and train step beside diffusers' UNet2DModel on the same patched grid, in one run.

    python3.11 -m venv .venv-peers && .venv-peers/bin/pip install -r requirements-peers.txt
    python -m benchmarks.peers [--peers_python=.venv-peers/bin/python] [--batch=8] [--repeats=9]

The network is `benchmarks.unet`'s; parameters are equal within 1%. Ours also predicts u, its variance. The
peer runs in a process of its own environment, as its user runs it (eager), in the memory format that PyTorch
recommends for convolutions, and compiled. A ratio is the median over the turns of (a peer's seconds / ours),
with the quartiles. float32, all cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np

from benchmarks.turns import in_turns, machine, seconds
from benchmarks.unet import CALLS, forward_of, make_network, train_step_of
from pdm_tf.describe import count_parameters
from pdm_tf.networks.group_norm import GroupNorm

MODES = ("eager", "channels_last", "compiled")


class Peer:
    """A process of the peers' environment, which runs one variant whenever it reads a line.

    Attributes:
      title, parameters: what it is.
    """

    def __init__(self, python: str, kind: str, mode: str, batch: int):
        script = Path(__file__).with_name("peers_torch.py")
        command = [python, str(script), kind, mode, str(batch)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        first = self.process.stdout.readline()
        if not first:
            raise SystemExit(f"{' '.join(command)} does not run: see requirements-peers.txt")
        self.title, self.parameters = json.loads(first)

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
    call = make(network, options.batch)
    call()
    peers = {mode: Peer(options.peers_python, kind, mode, options.batch) for mode in options.modes}
    peer = next(iter(peers.values()))
    print(f"{peer.title}: {peer.parameters:,} parameters; ours: {count_parameters(network):,}")
    measures = {"ours": lambda: seconds(call, CALLS)}
    measures |= {mode: peer.seconds for mode, peer in peers.items()}
    times = in_turns(measures, options.repeats)
    for peer in peers.values():
        peer.close()
    for name, values in times.items():
        low, ratio, high = np.percentile(values / times["ours"], (25, 50, 75))
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
    print(f"{machine()}, batch {options.batch}, float32")
    compare("forward", forward_of, options)
    compare("train", train_step_of, options)


if __name__ == "__main__":
    main()
