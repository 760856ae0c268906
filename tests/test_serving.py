"""The examples that serve and convert an export, run for real in an environment without this project.

PDM_TF_SERVE_PYTHON may name an interpreter that has what requirements-serve.txt lists. Without it the tests
make an environment of their own with pip, for as long as they run: minutes, and 2 GB of disk.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from flags.config import SamplingConfig
from pdm_tf.experts import Experts, Loaded
from pdm_tf.export import METADATA, export_saved_model
from tests.tiny_runs import tiny_config, tiny_denoiser

ROOT = Path(__file__).parent.parent
ORIGIN = {"weights": "none", "t_start": 0, "t_stop": 1000, "patch_size": 4, "prediction": "x"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def serve_python():
    """The interpreter of an environment with requirements-serve.txt."""
    if "PDM_TF_SERVE_PYTHON" in os.environ:
        yield os.environ["PDM_TF_SERVE_PYTHON"]
        return
    with tempfile.TemporaryDirectory(prefix="pdm_tf_serve_") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        requirements = str(ROOT / "requirements-serve.txt")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        yield python


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """An export of two experts of different patch sizes."""
    low = tiny_denoiser(tiny_config(diffusion__t_stop=396))
    high = tiny_denoiser(tiny_config(network__patch_size=8, diffusion__t_start=396), seed=1)
    experts = Experts([low, high])
    return export(experts, 2, tmp_path_factory.mktemp("exports") / "tiny")


def export(denoiser, experts, folder):
    config = dataclasses.replace(tiny_config(), sampling=SamplingConfig(steps=(5,)))
    export_saved_model(Loaded(denoiser, config, [ORIGIN] * experts), folder)
    return folder


def run_alone(python, folder, *arguments):
    """Runs a file of examples/ in another folder, where nothing of this project can be imported."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [python, *map(str, arguments)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def address(serve_python, model_folder, tmp_path):
    """The URL of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = run_alone(serve_python, tmp_path, ROOT / "examples/serve.py", model_folder, f"--port={port}")
    try:
        lines = []
        for line in server.stdout:
            lines.append(line)
            if line.startswith("serving "):
                break
        else:
            pytest.fail(f"the server ended: {''.join(lines)}")
        # Its pipe must be read on, or the server would stop when it is full.
        with ThreadPoolExecutor(1) as reader:
            reader.submit(server.stdout.read)
            yield line.split()[1]
            server.send_signal(signal.SIGTERM)
            assert server.wait(120) == 0
    finally:
        server.kill()


def post(address, body):
    """The answer of :predict."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}:predict", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_concurrent_clients_get_the_bytes_of_the_saved_model(address, model_folder):
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert json.load(answer) == json.loads((model_folder / METADATA).read_text())
    calls = [
        {"seed": seed, "labels": [seed % 3, 3, 1][: 1 + seed % 3], "guidance": 1.0 + 0.7 * (seed % 2)}
        for seed in range(12)
    ]

    def draw(inputs):
        return np.array(post(address, {"signature_name": "sample", "inputs": inputs})["outputs"], np.uint8)

    with ThreadPoolExecutor(6) as clients:
        served = list(clients.map(draw, calls))
    model = tf.saved_model.load(str(model_folder))
    for inputs, images in zip(calls, served):
        alone = model.signatures["sample"](**{key: tf.constant(value) for key, value in inputs.items()})
        assert images.std() > 10
        np.testing.assert_array_equal(images, alone["images"])

    z = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32)
    inputs = {"z": z.tolist(), "t": [10, 900], "labels": [0, 3]}
    denoised = post(address, {"signature_name": "denoise", "inputs": inputs})["outputs"]
    alone = model.denoise(z, tf.constant([10, 900]), tf.constant([0, 3]))
    assert denoised.keys() == alone.keys() == {"x", "log_variance", "u"}
    for key, value in alone.items():
        np.testing.assert_array_equal(np.array(denoised[key], np.float32), value)
    complain(address)


def complain(address):
    """Wrong requests are refused with a reason, and the server goes on."""
    right = {"seed": 0, "labels": [0], "guidance": 1.0}
    wrong = [
        (address, {"inputs": {**right, "labels": [4]}}, 400, "labels must be 0 to 2, or 3 for no class"),
        (address, {"inputs": {"seed": 0}}, 400, "guidance"),
        (address, {"signature_name": "draw", "inputs": right}, 400, "draw"),
        (address, {"inputs": {**right, "seed": "zero"}}, 400, "zero"),
        (f"{address}2", {"inputs": right}, 404, "there is no model tiny2"),
    ]
    for url, body, status, reason in wrong:
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(url, body)
        assert refused.value.code == status and reason in json.load(refused.value)["error"]
    assert np.array(post(address, {"inputs": right})["outputs"]).shape == (1, 16, 16, 3)


RUN_ONNX = """
import sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
names = [output.name for output in session.get_outputs()]
with np.load(sys.argv[2]) as inputs:
    outputs = session.run(names, dict(inputs))
np.savez(sys.argv[3], **dict(zip(names, outputs)))
"""


def convert(python, folder, output):
    """The exit status and the last line of examples/to_onnx.py."""
    converter = run_alone(python, output.parent, ROOT / "examples/to_onnx.py", folder, output)
    said, _ = converter.communicate(timeout=600)
    return converter.returncode, said.splitlines()[-1]


def test_onnx_of_experts_is_refused(serve_python, model_folder, tmp_path):
    status, said = convert(serve_python, model_folder, tmp_path / "tiny.onnx")
    assert status == 2 and "holds 2 experts" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("patch_size", [1, 4])
def test_onnx_denoises_as_the_saved_model(serve_python, tmp_path, patch_size):
    folder = export(tiny_denoiser(tiny_config(network__patch_size=patch_size)), 1, tmp_path / "model")
    output = tmp_path / "tiny.onnx"
    assert convert(serve_python, folder, output) == (0, f"ONNX model: {output}")
    model = tf.saved_model.load(str(folder))
    generator = np.random.default_rng(0)
    for timesteps in ([0], [395, 500, 999]):
        count = len(timesteps)
        inputs = {
            "z": generator.standard_normal((count, 16, 16, 3)).astype(np.float32),
            "t": np.array(timesteps, np.int32),
            "labels": generator.integers(0, 4, count).astype(np.int32),
        }
        np.savez(tmp_path / "inputs.npz", **inputs)
        files = [tmp_path / name for name in ("tiny.onnx", "inputs.npz", "outputs.npz")]
        runner = run_alone(serve_python, tmp_path, "-c", RUN_ONNX, *files)
        said, _ = runner.communicate(timeout=300)
        assert runner.returncode == 0, said
        wanted = model.denoise(*(tf.constant(inputs[name]) for name in ("z", "t", "labels")))
        with np.load(tmp_path / "outputs.npz") as found:
            assert set(found.files) == wanted.keys()
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name], value, atol=5e-5)
                print(timesteps, name, np.abs(found[name] - value).max(), np.abs(value).max())
