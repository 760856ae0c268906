"""Our forward pass, train step and sampling beside the same networks in PyTorch, in one run.

    python3.11 -m venv .venv-peers && .venv-peers/bin/pip install -r requirements-peers.txt
    python -m benchmarks.peers [--peers_python=.venv-peers/bin/python] [--batch=8] [--repeats=9] [--memory]

The U-Net is `benchmarks.unet`'s, beside diffusers' UNet2DModel on the same patched grid; the ViT is
avatars64's. Parameters are equal within 10%. Ours also predict u, their variance. Sampling is 20 steps of
DPM-Solver++, beside diffusers' scheduler. The peer runs in a process of its own environment, as its user runs
it (eager), in the memory format that PyTorch recommends for convolutions, and compiled. A ratio is the median
over the turns of (a peer's seconds / ours), with the quartiles. All cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.turns import in_fresh_process, in_turns, machine, seconds
from benchmarks.unet import CALLS, forward_of, make_network, randomized, train_step_of
from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.config.presets import FAST_SAMPLING
from pdm_tf.denoiser import build_denoiser, build_network
from pdm_tf.describe import count_parameters
from pdm_tf.networks.group_norm import GroupNorm
from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.progress import peak_resident
from pdm_tf.run import PRETRAINED, RunFolder
from pdm_tf.sampling.sampler import Sampler

NETWORKS = ("unet", "vit")
KINDS = ("forward", "train", "sample")
PRECISIONS = ("float32", "mixed_bfloat16")
MODES = ("eager", "channels_last", "compiled")


def network_of(name: str, precision: str) -> PatchedNetwork:
    """The yardstick's U-Net, or avatars64's ViT, with random weights."""
    if name == "unet":
        return make_network(precision, GroupNorm)
    return randomized(build_network(RunFolder(PRETRAINED / "avatars64").config(), precision))


def sample_of(network: PatchedNetwork, batch: int) -> Callable[[], np.ndarray]:
    """A function that draws a batch of images."""
    sampler = Sampler(build_denoiser(DiffusionConfig(), network), FAST_SAMPLING)
    labels = np.zeros(batch, np.int32)
    return lambda: sampler(0, range(batch), labels)


MAKERS = {"forward": forward_of, "train": train_step_of, "sample": sample_of}


class Peer:
    """A process of the peers' environment, which runs one variant whenever it reads a line.

    Attributes:
      title, parameters: what it is.
    """

    def __init__(self, python: str, *arguments: str | int):
        command = [python, str(Path(__file__).with_name("peers_torch.py")), *map(str, arguments)]
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


def our_peak(name: str, precision: str, batch: int) -> float:
    """The most memory that this process holds in two train steps, in MiB."""
    step = train_step_of(network_of(name, precision), batch)
    step()
    step()
    return peak_resident()


def compare_memory(name: str, precision: str, options: argparse.Namespace) -> None:
    """Prints the peaks of processes that train one network."""
    ours = in_fresh_process(our_peak, name, precision, options.batch)
    peer = Peer(options.peers_python, name, "train", precision, "eager", options.batch)
    peer.seconds()
    eager = peak_resident(peer.process.pid)
    print(f"{name:4}  {precision:14}  peak: ours {ours:.0f} MiB, eager {eager:.0f} MiB", flush=True)
    peer.close()


def compare(name: str, kind: str, precision: str, options: argparse.Namespace) -> None:
    """Prints the rows of one network and kind of call."""
    network = network_of(name, precision)
    call = MAKERS[kind](network, options.batch)
    call()
    peers = {
        mode: Peer(options.peers_python, name, kind, precision, mode, options.batch) for mode in options.modes
    }
    peer = next(iter(peers.values()))
    print(f"{peer.title}: {peer.parameters:,} parameters; ours: {count_parameters(network):,}")
    measures = {"ours": lambda: seconds(call, CALLS)}
    measures |= {mode: peer.seconds for mode, peer in peers.items()}
    times = in_turns(measures, options.repeats)
    for peer in peers.values():
        peer.close()
    for variant, values in times.items():
        low, ratio, high = np.percentile(values / times["ours"], (25, 50, 75))
        rate = options.batch / np.median(values)
        print(
            f"{name:4}  {kind:7}  {precision:14}  {variant:13} {rate:6.1f} images/s   "
            f"ours is {ratio:.2f} x ({low:.2f} to {high:.2f})",
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
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--memory", action="store_true", help="peak memory of training, and nothing else")
    options = parser.parse_args()
    print(f"{machine()}, batch {options.batch}")
    if options.memory:
        for name in options.networks:
            for precision in options.precisions:
                compare_memory(name, precision, options)
        return
    for name in options.networks:
        for kind in options.kinds:
            for precision in options.precisions:
                compare(name, kind, precision, options)


if __name__ == "__main__":
    main()
