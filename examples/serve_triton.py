"""Serves an export with NVIDIA Triton: python examples/serve_triton.py exports/avatars64 --http_port=8000

Triton puts what several clients ask for at one time into one batch, over HTTP and gRPC, in KServe's protocol
(version 2). NAME is the folder's name. All inputs and outputs have the batch first:

  model NAME            labels INT32 (B, 1); and, if wanted, seed INT32 (B, 1), guidance FP32 (B, 1) and
                        index INT32 (B, 1), else seed 0, the export's guidance, and 0 to B - 1
                        -> images UINT8 (B, H, W, C): image `index` of each seed, whatever else the batch has
  model NAME_denoise    z FP32 (B, H, W, C), t INT32 (B, 1), labels INT32 (B, 1)
                        -> x, log_variance and u FP32 (B, H, W, C)

A wrong request is refused by itself, whatever else is in its batch. The export's warm-up requests are run
before the first answer. Options that are not of this program are Triton's.

It needs what requirements-triton.txt lists and nothing of this project. Ctrl-C or SIGTERM ends it.

This file is two programs: one that makes a repository of two models and runs Triton on it, and the code of
these models, which Triton runs in processes of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request

SIGNATURES = {"": "sample_rows", "_denoise": "denoise"}  # what follows NAME -> what it calls
OPTIONAL = {"seed", "index", "guidance"}
TYPES = {"int32": "TYPE_INT32", "float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


class TritonPythonModel:
    """One signature of an export, as Triton's Python backend calls it."""

    def initialize(self, arguments: dict) -> None:
        """Loads the export, and runs its warm-up requests."""
        sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
        from serve import Model

        parameters = json.loads(arguments["model_config"])["parameters"]
        self.signature = parameters["signature"]["string_value"]
        self.model = Model(parameters["folder"]["string_value"], self.signature)
        signatures = self.model.metadata["pdm_tf"]["signatures"]
        self.inputs = signatures[self.signature]["inputs"]
        self.outputs = signatures[self.signature]["outputs"]
        self.default = signatures["sample"]["defaults"]

    def execute(self, requests: list) -> list:
        """Answers the requests of a batch, of which each has some images, by one call."""
        import numpy as np
        import triton_python_backend_utils as triton
        from serve import RequestError

        try:
            parts = [self.values(triton, request) for request in requests]
            values = {name: np.concatenate([part[name] for part in parts]) for name in self.inputs}
            found = self.model.call(self.signature, values)
        except RequestError as refused:
            if len(requests) > 1:  # one of them is wrong: the others must not suffer for it
                return [answer for request in requests for answer in self.execute([request])]
            error = triton.TritonError(str(refused), triton.TritonError.INVALID_ARG)
            return [triton.InferenceResponse([], error)]
        ends = np.cumsum([len(part["labels"]) for part in parts])[:-1]
        outputs = {name: np.split(found[name], ends) for name in self.outputs}
        return [
            triton.InferenceResponse([triton.Tensor(name, outputs[name][place]) for name in self.outputs])
            for place in range(len(requests))
        ]

    def values(self, triton, request) -> dict:
        """A request's inputs, of which those of one number an image are (B,); raises RequestError."""
        import numpy as np
        from serve import RequestError

        given = {name: triton.get_input_tensor_by_name(request, name) for name in self.inputs}
        given = {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}
        if "labels" not in given:  # Triton itself lets this pass where other inputs may be left out
            raise RequestError(400, "Missing input: labels")
        count = len(given["labels"])
        given.setdefault("index", np.arange(count, dtype=np.int32))
        for name in self.inputs.keys() - given.keys():
            given[name] = np.full(count, self.default[name], self.inputs[name][0])
        return {name: value.reshape(-1) if value.ndim == 2 else value for name, value in given.items()}


def write_repository(folder: str, repository: str, batch: int) -> list[str]:
    """Writes Triton's model repository for an export, `batch` images a call; returns its models' names."""
    with open(os.path.join(folder, "assets.extra", "pdm_tf.json")) as file:
        signatures = json.load(file)["signatures"]
    names = []
    for suffix, signature in SIGNATURES.items():
        names.append(os.path.basename(folder) + suffix)
        model = os.path.join(repository, names[-1])
        os.makedirs(os.path.join(model, "1"))
        os.symlink(os.path.realpath(__file__), os.path.join(model, "1", "model.py"))
        with open(os.path.join(model, "config.pbtxt"), "w") as file:
            file.write(config_of(signatures[signature], batch, {"folder": folder, "signature": signature}))
    return names


def config_of(signature: dict, batch: int, parameters: dict) -> str:
    """The config.pbtxt of a model, from the export's metadata on a signature."""
    # A wait of 10 ms for other clients' requests: two images in one batch take far less time than two calls.
    lines = [f'backend: "python" max_batch_size: {batch} instance_group {{ kind: KIND_CPU }}']
    lines.append("dynamic_batching { max_queue_delay_microseconds: 10000 }")
    for kind in ("input", "output"):
        for name, (dtype, shape) in signature[kind + "s"].items():
            optional = " optional: true" if name in OPTIONAL else ""
            dims = ", ".join(map(str, shape[1:] or [1]))
            lines.append(f'{kind} {{ name: "{name}" data_type: {TYPES[dtype]} dims: [{dims}]{optional} }}')
    for key, value in parameters.items():
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}')
    return "\n".join(lines) + "\n"


def install(folder: str) -> tuple[str, dict[str, str]]:
    """Makes a folder for Triton's backends, that for this interpreter's version of Python.

    Returns the server's program, and the environment that it runs in.
    """
    import pytriton

    package = os.path.dirname(pytriton.__file__)
    version = ".".join(map(str, sys.version_info[:2]))
    backend = os.path.join(folder, "python")
    os.mkdir(backend)
    for part in ("backends/python", f"python_backend_stubs/{version}"):
        for entry in os.scandir(f"{package}/tritonserver/{part}"):
            if entry.is_file():
                os.symlink(entry.path, os.path.join(backend, entry.name))
    libraries = [os.path.join(os.path.dirname(package), "nvidia_pytriton.libs")]
    libraries += [sysconfig.get_config_var("LIBDIR"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    path = os.pathsep.join([os.path.join(sys.exec_prefix, "bin"), os.environ["PATH"]])  # of the models
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries), "PATH": path}
    return f"{package}/tritonserver/bin/tritonserver", environment


def end_with_parent() -> None:
    """Asks Linux to send SIGTERM to this process when the one that started it is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def is_ready(url: str) -> bool:
    """Whether Triton answers, and all its models do."""
    here = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's ports
    try:
        with here.open(f"{url}/v2/health/ready", timeout=10):
            return True
    except OSError:
        return False


def main() -> int:
    """Serves until a signal comes; the exit status is Triton's."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", help="an export")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--http_port", type=int, default=8000)
    parser.add_argument("--grpc_port", type=int, default=8001)
    parser.add_argument("--batch", type=int, default=16, help="how many images are drawn at one time")
    arguments, others = parser.parse_known_args()
    folder = os.path.abspath(arguments.folder)
    if not os.path.isfile(os.path.join(folder, "saved_model.pb")):
        parser.error(f"{folder} holds no SavedModel: write one with python main.py --mode=export")
    host, http, grpc = arguments.host, arguments.http_port, arguments.grpc_port
    with tempfile.TemporaryDirectory() as repository, tempfile.TemporaryDirectory() as backends:
        names = write_repository(folder, repository, arguments.batch)
        program, environment = install(backends)
        command = [
            program, f"--model-repository={repository}", f"--backend-directory={backends}",
            f"--http-address={host}", f"--http-port={http}", f"--grpc-address={host}", f"--grpc-port={grpc}",
            "--log-info=false", *others,
        ]  # fmt: skip
        server = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.send_signal(signal.SIGINT))
        while server.poll() is None and not is_ready(f"http://{host}:{http}"):
            time.sleep(0.2)
        if server.poll() is None:
            print(f"serving {', '.join(names)} at http://{host}:{http} and grpc://{host}:{grpc}", flush=True)
        return server.wait()


if __name__ == "__main__":
    sys.exit(main())
