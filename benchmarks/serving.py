"""Images a second that clients get from the two servers of examples/, at work on one export in one run.

    python -m benchmarks.serving exports/avatars64 --python=.venv-serve/bin/python [--clients=8] [--repeats=5]

Each client asks for one image after another, of seeds, labels and guidance of its own, in JSON over HTTP. The
servers take turns, and both must answer the same bytes. A ratio is that of one turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.turns import with_range

EXAMPLES = Path(__file__).parent.parent / "examples"


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def serving(python: str, example: str, *arguments) -> Iterator[str]:
    """Runs a server of examples/ where nothing of this project can be imported, and ends it by SIGTERM.

    Yields the line that it prints when it is ready.

    Raises:
      RuntimeError: it ended before that, or not with status 0; with its output.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [python, str(EXAMPLES / example), *map(str, arguments)], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        output = []
        try:
            for line in server.stdout:
                output.append(line)
                if line.startswith("serving "):
                    break
            else:
                raise RuntimeError(f"the server ended: {''.join(output)}")
            # Its pipe must be read on, or the server would stop when it is full.
            reader = threading.Thread(target=lambda: output.extend(server.stdout), daemon=True)
            reader.start()
            yield line
            server.send_signal(signal.SIGTERM)
            if server.wait(120):
                reader.join()
                raise RuntimeError(f"the server ended with status {server.returncode}: {''.join(output)}")
        finally:
            server.kill()


@contextlib.contextmanager
def ray(python: str, folder: Path) -> Iterator[str]:
    """examples/serve.py; gives the address of its model."""
    (port,) = free_ports(1)
    with serving(python, "serve.py", folder, f"--port={port}") as line:
        yield line.split()[1]


@contextlib.contextmanager
def triton(python: str, folder: Path) -> Iterator[tuple[str, str]]:
    """examples/serve_triton.py; gives the addresses, host and port, of HTTP and gRPC."""
    ports = free_ports(2)
    options = [f"--http_port={ports[0]}", f"--grpc_port={ports[1]}", "--allow-metrics=false"]
    with serving(python, "serve_triton.py", folder, *options):
        yield tuple(f"127.0.0.1:{port}" for port in ports)


def post(url: str, body: dict) -> dict:
    """The answer to a JSON request."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    here = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's ports
    with here.open(request, timeout=600) as answer:
        return json.load(answer)


def from_ray(address: str, seed: int, label: int, guidance: float) -> np.ndarray:
    """One image of examples/serve.py."""
    inputs = {"seed": seed, "labels": [label], "guidance": guidance}
    return np.array(post(f"{address}:predict", {"inputs": inputs})["outputs"], np.uint8)


def from_triton(address: str, name: str, seed: int, label: int, guidance: float) -> np.ndarray:
    """One image of examples/serve_triton.py."""
    values = {"seed": ("INT32", seed), "labels": ("INT32", label), "guidance": ("FP32", guidance)}
    inputs = [
        {"name": key, "shape": [1, 1], "datatype": kind, "data": [value]}
        for key, (kind, value) in values.items()
    ]
    (images,) = post(f"http://{address}/v2/models/{name}/infer", {"inputs": inputs})["outputs"]
    return np.array(images["data"], np.uint8).reshape(images["shape"])


def rate_of(draw: Callable[..., np.ndarray], requests: Sequence[tuple], clients: int) -> tuple[float, list]:
    """Images a second with this number of clients, and the images."""
    begin = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        images = list(pool.map(lambda request: draw(*request), requests))
    return len(requests) / (time.monotonic() - begin), images


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="what --mode=export wrote")
    parser.add_argument("--python", required=True, help="of an environment with requirements-triton.txt")
    parser.add_argument("--clients", type=int, default=8, help="how many ask at the same time")
    parser.add_argument("--images", type=int, default=32, help="how many all of them ask for in a turn")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    folder, python = options.folder.absolute(), str(Path(options.python).absolute())
    export = json.loads((folder / "assets.extra/pdm_tf.json").read_text())
    weights = (1.0, 1.5) if export["takes_guidance"] else (1.0,)
    with ray(python, folder) as model, triton(python, folder) as (http, _):
        servers = {
            "examples/serve.py": lambda *request: from_ray(model, *request),
            "examples/serve_triton.py": lambda *request: from_triton(http, folder.name, *request),
        }
        rates = {name: [] for name in servers}
        for turn in range(options.repeats):
            seeds = range(turn * options.images, (turn + 1) * options.images)
            requests = [
                (seed, seed % max(1, export["num_classes"]), weights[seed // 2 % len(weights)])
                for seed in seeds
            ]
            found = {name: rate_of(draw, requests, options.clients) for name, draw in servers.items()}
            for name, (rate, _) in found.items():
                rates[name].append(rate)
            np.testing.assert_array_equal(*(images for _, images in found.values()))
    for name, values in rates.items():
        print(f"{name}: {with_range(values)} images/s, {options.clients} clients")
    first, second = map(np.array, rates.values())
    print(f"the second is {with_range(second / first)} times as fast")


if __name__ == "__main__":
    main(sys.argv[1:])
