"""Our forward pass, train step and sampling beside the same networks in PyTorch, in one run.

    python3.11 -m venv .venv-peers && .venv-peers/bin/pip install -r requirements-peers.txt
    python -m benchmarks.peers [--peers_python=.venv-peers/bin/python] [--processes=3] [--memory]

The U-Net is `benchmarks.unet`'s, beside diffusers' UNet2DModel on the same patched grid; the ViT is
avatars64's. Parameters are equal within 10%. Ours also predict u, their variance. Sampling is 20 steps of
DPM-Solver++, beside diffusers' scheduler. The peer is run as its user runs it (eager), in the memory format
that PyTorch recommends for convolutions, and compiled. Each variant has a process of its own, since speed
differs more from process to process than from turn to turn. A process' ratio is the median over its turns of
(a peer's seconds / ours); the median over the processes is printed, with their range. All cores. --memory
prints peaks of training in place of all this.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.turns import in_turns, machine, seconds, with_range
from benchmarks.unet import CALLS, forward_of, make_network, randomized, train_step_of
from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.config.presets import FAST_SAMPLING
from pdm_tf.denoiser import build_denoiser, build_network
from pdm_tf.networks.norms import GroupNorm
from pdm_tf.networks.patched import PatchedNetwork
from pdm_tf.progress import in_fresh_process, peak_resident
from pdm_tf.run import PRETRAINED, RunFolder
from pdm_tf.sampling.sampler import Sampler

NETWORKS = ("unet", "vit")
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


class Variant:
    """A process that runs one variant whenever it reads a line."""

    def __init__(self, *command: str | int):
        command = [str(word) for word in command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        first = self.process.stdout.readline()
        if not first:
            raise SystemExit(f"{' '.join(command)} does not run: see requirements-peers.txt")
        self.title, self.parameters = json.loads(first)

    def seconds(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def peer(python: str, *variant: str | int) -> Variant:
    """A variant of PyTorch: network, kind, precision, mode and batch."""
    return Variant(python, Path(__file__).with_name("peers_torch.py"), *variant)


def serve(name: str, kind: str, precision: str, batch: str) -> None:
    """Is our process of a `Variant`."""
    network = network_of(name, precision)
    call = MAKERS[kind](network, int(batch))
    for _ in range(2):
        call()
    print(json.dumps(["pdm_tf", network.count_params()]), flush=True)
    for _ in sys.stdin:
        print(seconds(call, CALLS), flush=True)


def our_peak(name: str, precision: str, batch: int) -> float:
    """The most memory that this process holds in two train steps, in MiB."""
    step = train_step_of(network_of(name, precision), batch)
    step()
    step()
    return peak_resident()


def compare_memory(name: str, precision: str, options: argparse.Namespace) -> None:
    """Prints the peaks of processes that train one network."""
    ours = in_fresh_process(our_peak, name, precision, options.batch)
    eager = peer(options.peers_python, name, "train", precision, "eager", options.batch)
    eager.seconds()
    theirs = peak_resident(eager.process.pid)
    print(f"{name:4}  {precision:14}  peak: ours {ours:.0f} MiB, eager {theirs:.0f} MiB", flush=True)
    eager.close()


def compare(name: str, kind: str, precision: str, options: argparse.Namespace) -> None:
    """Prints the rows of one network and kind of call."""
    found = [times_of(name, kind, precision, options) for _ in range(options.processes)]
    for variant in found[0]:
        rate = options.batch / np.median([times[variant] for times in found])
        ratios = [np.median(times[variant] / times["ours"]) for times in found]
        print(
            f"{name:4}  {kind:7}  {precision:14}  {variant:13} {rate:6.1f} images/s   "
            f"ours is {with_range(ratios)} times as fast",
            flush=True,
        )


def times_of(name: str, kind: str, precision: str, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Seconds of a call in each turn, of each variant in a new process."""
    what = (name, kind, precision)
    variants = {"ours": Variant(sys.executable, "-m", "benchmarks.peers", "--serve", *what, options.batch)}
    for mode in options.modes:
        variants[mode] = peer(options.peers_python, *what, mode, options.batch)
    titles = [f"{one.title}: {one.parameters:,} parameters" for one in variants.values()]
    print("; ".join(dict.fromkeys(titles)), flush=True)
    times = in_turns({name: variant.seconds for name, variant in variants.items()}, options.repeats)
    for variant in variants.values():
        variant.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers_python", default=".venv-peers/bin/python")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--processes", type=int, default=3, help="of each variant, one after another")
    parser.add_argument("--repeats", type=int, default=5, help="turns of a process")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--kinds", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--memory", action="store_true", help="peak memory of training, and nothing else")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
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
