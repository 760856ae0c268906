"""The examples that serve and convert an export, run for real in an environment without this project, and
what the server answers, in this process.

PDM_TF_SERVE_PYTHON may name an interpreter that has what requirements-triton.txt lists. Without it the tests
make an environment of their own with pip, for as long as they run: minutes, and 2 GB of disk.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.serving import post, ray, triton
from pdm_tf.config.fields import SamplingConfig
from pdm_tf.denoiser import SplitDenoiser
from pdm_tf.export import METADATA, export_saved_model
from pdm_tf.models import Model, Run
from pdm_tf.run import RunFolder
from tests.tiny_runs import tiny_config, tiny_denoiser

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def serve_python():
    """The interpreter of an environment with requirements-triton.txt, or -serve.txt where that fails."""
    if "PDM_TF_SERVE_PYTHON" in os.environ:
        yield os.environ["PDM_TF_SERVE_PYTHON"]
        return
    with tempfile.TemporaryDirectory(prefix="pdm_tf_serve_") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = f"{folder}/bin/python"
        # Triton comes for fewer systems than all others: where it does not, its test says so.
        for name, needed in (("requirements-serve.txt", True), ("requirements-triton.txt", False)):
            command = [python, "-m", "pip", "install", "--quiet", "-r", str(ROOT / name)]
            subprocess.run(command, check=needed)
        yield python


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """An export of two experts of different patch sizes."""
    low = tiny_denoiser(tiny_config(diffusion__t_stop=396))
    high = tiny_denoiser(tiny_config(network__patch_size=8, diffusion__t_start=396), seed=1)
    experts = SplitDenoiser([low, high])
    return export(experts, tmp_path_factory.mktemp("exports") / "tiny")


def export(denoiser, folder):
    config = dataclasses.replace(tiny_config(), sampling=SamplingConfig(steps=(5,)))
    model = Model([Run(RunFolder(folder.parent / "run"), config)])
    model.denoiser = denoiser
    model.denoisers = [part.denoiser for part in denoiser.parts]
    export_saved_model(model, folder)
    return folder


def run_alone(python, folder, *arguments):
    """Runs a file of examples/ in another folder, where nothing of this project can be imported."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [python, *map(str, arguments)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


STATUS = {
    "model_version_status": [
        {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    ]
}
RIGHT = {"seed": 3, "labels": [2, 3], "guidance": 1.5}
ROWS = [{"seed": 3, "labels": 2, "guidance": 1.5}, {"seed": 3, "labels": 3, "guidance": 1.5}]
Z = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype(np.float32).round(3)
DENOISE = {"z": Z.tolist(), "t": [10, 900], "labels": [0, 3]}
ONE = "/v1/models/tiny"
# Method, path and body -> status and answer, or a part of the error, as in TensorFlow Serving's api_rest.md.
REST = [
    ("GET", ONE, None, 200, STATUS),
    ("GET", f"{ONE}/versions/1", None, 200, STATUS),
    ("GET", f"{ONE}/versions/2", None, 404, "Servable not found"),
    ("GET", f"{ONE}:predict", None, 400, f"Malformed request: GET {ONE}:predict"),
    ("POST", f"{ONE}:predict", b"{", 400, "JSON Parse error"),
    ("POST", f"{ONE}:predict", {}, 400, "with one of 'inputs' and 'instances'"),
    ("POST", f"{ONE}:predict", b'{"inputs": {"guidance": NaN}}', 400, "JSON Parse error: NaN is no number"),
    ("POST", f"{ONE}:predict", {"signature_name": "denoise", "inputs": {"t": [1]}}, 400,
     "Missing named input: "),
    ("POST", f"{ONE}:predict", {"inputs": {"label": [0]}}, 400, "Unknown input: label"),
    ("POST", f"{ONE}:predict", {"instances": [ROWS[0], {"seed": 3}]}, 400, "element: 1 of 'instances'"),
    ("POST", f"{ONE}:predict", {"signature_name": "draw", "inputs": RIGHT}, 400,
     'Serving signature name: "draw" not found in signature def'),
    # The export's own words.
    ("POST", f"{ONE}:predict", {"inputs": {**RIGHT, "labels": [4]}}, 400, "labels must be 0 to 3, of which"),
    ("POST", f"{ONE}:predict", {"inputs": {**RIGHT, "seed": 2**40}}, 400, "seed: a number is beyond what"),
    ("POST", f"{ONE}:predict", {"inputs": {**RIGHT, "labels": [[0], [1, 2]]}}, 400, ""),
]  # fmt: skip


def check_rest(call, model_folder):
    """Compares the answers of `call(method, path, body) -> status, answer` with what they must be."""
    for method, path, body, status, wanted in REST:
        found, answer = call(method, path, body)
        assert found == status, (path, body, answer)
        if status == 200:
            assert answer == wanted
        else:
            assert answer.keys() == {"error"} and wanted in answer["error"] and answer["error"]
            assert "\n" not in answer["error"]
    _, about = call("GET", f"{ONE}/versions/1/metadata", None)
    assert call("GET", f"{ONE}/metadata", None) == (200, about)
    assert about.pop("pdm_tf") == json.loads((model_folder / METADATA).read_text())
    assert about["model_spec"] == {"name": "tiny", "signature_name": "", "version": "1"}
    signatures = about["metadata"]["signature_def"]["signature_def"]
    assert {name for name in signatures if name[:2] != "__"} == {
        "serving_default", "sample", "sample_rows", "denoise",
    }  # fmt: skip
    labels = signatures["serving_default"]["inputs"]["labels"]
    assert labels.pop("name").endswith(":0")
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert labels == {"dtype": "DT_INT32", "tensor_shape": shape}
    assert signatures["denoise"]["outputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signatures["denoise"]["method_name"] == "tensorflow/serving/predict"

    model = tf.saved_model.load(str(model_folder))
    images = model.signatures["sample"](**{key: tf.constant(value) for key, value in RIGHT.items()})["images"]
    for path in (f"{ONE}:predict", f"{ONE}/versions/1:predict"):
        assert call("POST", path, {"inputs": RIGHT}) == (200, {"outputs": images.numpy().tolist()})
        assert call("POST", path, {"instances": ROWS}) == (200, {"predictions": images.numpy().tolist()})
    assert np.std(images) > 10
    images = model.sample(0, tf.constant([2]), 1.0)["images"]
    assert call("POST", f"{ONE}:predict", {"inputs": {"labels": [2]}}) == (
        200, {"outputs": images.numpy().tolist()},
    )  # fmt: skip
    alone = model.denoise(Z, tf.constant([10, 900]), tf.constant([0, 3]))
    _, columns = call("POST", f"{ONE}:predict", {"signature_name": "denoise", "inputs": DENOISE})
    assert columns["outputs"] == {key: value.numpy().tolist() for key, value in alone.items()}
    rows = [dict(zip(DENOISE, row)) for row in zip(*DENOISE.values())]
    _, predicted = call("POST", f"{ONE}:predict", {"signature_name": "denoise", "instances": rows})
    assert len(predicted["predictions"]) == len(rows)
    for number, row in enumerate(predicted["predictions"]):
        assert row == {key: value[number] for key, value in columns["outputs"].items()}


def test_answers_are_those_that_tensorflow_serving_documents(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("serve_example", ROOT / "examples/serve.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example.Model, "warm_up", lambda *_: None)  # the slow test's, which has the package
    model_folder = export(tiny_denoiser(), tmp_path / "tiny")
    model = example.Model(str(model_folder))

    def call(method, path, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        status, answer = model.answer(method, path, data)
        return status, json.loads(json.dumps(answer))

    check_rest(call, model_folder)


@pytest.fixture
def address(serve_python, model_folder):
    """The URL of a running server."""
    with ray(serve_python, model_folder) as url:
        yield url


# Somebody's own client, of the standard library alone: requests on its input, answers on its output.
CLIENT = """
import json, sys, urllib.error, urllib.request

for line in sys.stdin:
    method, url, body = json.loads(line)
    data = None if body is None else body.encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            found = [answer.status, json.load(answer)]
    except urllib.error.HTTPError as error:
        found = [error.code, json.load(error)]
    print(json.dumps(found), flush=True)
"""


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_clients_get_from_the_server_what_tensorflow_serving_documents(address, model_folder, tmp_path):
    host = address.removesuffix("/v1/models/tiny")
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )

    def call(method, path, body):
        text = None if body is None else body.decode() if isinstance(body, bytes) else json.dumps(body)
        client.stdin.write(json.dumps([method, host + path, text]) + "\n")
        client.stdin.flush()
        return tuple(json.loads(client.stdout.readline()))

    check_rest(call, model_folder)
    client.stdin.close()
    assert client.wait(60) == 0

    calls = [
        {"seed": seed, "labels": [seed % 3, 3, 1][: 1 + seed % 3], "guidance": 1.0 + 0.7 * (seed % 2)}
        for seed in range(12)
    ]

    def draw(inputs):
        return np.array(
            post(f"{address}:predict", {"signature_name": "sample", "inputs": inputs})["outputs"], np.uint8
        )

    with ThreadPoolExecutor(6) as clients:
        served = list(clients.map(draw, calls))
    model = tf.saved_model.load(str(model_folder))
    for inputs, images in zip(calls, served):
        alone = model.signatures["sample"](**{key: tf.constant(value) for key, value in inputs.items()})
        assert images.std() > 10
        np.testing.assert_array_equal(images, alone["images"])


# Triton's own clients, all at once: requests of a file, answers into another, reasons of refusals to stdout.
TRITON_CLIENTS = """
import json, sys, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import tritonclient.grpc, tritonclient.http, tritonclient.utils

modules = [(tritonclient.http, sys.argv[1]), (tritonclient.grpc, sys.argv[2])]
requests = json.load(open(sys.argv[3]))
together = threading.Barrier(len(requests))
answers = {}

def ask(number):
    module, address = modules[number % 2]
    model, given, outputs = requests[number]
    inputs = []
    for name, (kind, value) in given.items():
        value = np.array(value, tritonclient.utils.triton_to_np_dtype(kind))
        inputs.append(module.InferInput(name, value.shape, kind))
        inputs[-1].set_data_from_numpy(value)
    client = module.InferenceServerClient(address)
    together.wait()
    try:
        answer = client.infer(model, inputs)
    except tritonclient.utils.InferenceServerException as error:
        return error.message()
    answers.update({f"{number} {name}": answer.as_numpy(name) for name in outputs})

with ThreadPoolExecutor(len(requests)) as pool:
    print(json.dumps(list(pool.map(ask, range(len(requests))))))
np.savez(sys.argv[4], **answers)
"""
KINDS = {"guidance": "FP32", "z": "FP32"}
# What is refused, and a part of what is said then.
REFUSED = [
    ({"labels": [[4]]}, "labels must be 0 to 3, of which 3 is no class"),
    ({"labels": [[0]], "guidance": [[float("inf")]]}, "guidance must be a finite number"),
    ({"seed": [[0]]}, "Missing input: labels"),
]


def call_signature(model, name, inputs):
    """The outputs of a signature as arrays."""
    outputs = model.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
    return {key: value.numpy() for key, value in outputs.items()}


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_triton_gives_each_client_its_own_bytes_whatever_else_is_in_the_batch(
    serve_python, model_folder, tmp_path
):
    if subprocess.run([serve_python, "-c", "import pytriton"], capture_output=True, check=False).returncode:
        pytest.skip(f"{serve_python} has no nvidia-pytriton: install requirements-triton.txt")
    model, requests, wanted = tf.saved_model.load(str(model_folder)), [], []
    for seed in range(10):
        labels, guidance = [seed % 3, 3, 1][: 1 + seed % 3], 1.0 + 0.7 * (seed % 2)
        inputs = {"seed": seed, "labels": labels, "guidance": guidance}
        wanted.append(call_signature(model, "sample", inputs))
        rows = {key: np.broadcast_to(value, len(labels))[:, None].tolist() for key, value in inputs.items()}
        requests.append(["tiny", rows, ["images"]])
    # The third image of a seed alone, what is left out, and the other model.
    requests.append(["tiny", {**requests[8][1], "index": [[2], [1], [0]]}, ["images"]])
    rows = {"seed": [8] * 3, "index": [2, 1, 0], "labels": [2, 3, 1], "guidance": [1.0] * 3}
    wanted.append(call_signature(model, "sample_rows", rows))
    requests.append(["tiny", {"labels": [[1], [2]]}, ["images"]])
    wanted.append(call_signature(model, "sample", {"seed": 0, "labels": [1, 2], "guidance": 1.0}))
    rows = {**DENOISE, "t": [[10], [900]], "labels": [[0], [3]]}
    requests.append(["tiny_denoise", rows, ["x", "log_variance", "u"]])
    wanted.append(call_signature(model, "denoise", DENOISE))
    requests += [["tiny", inputs, []] for inputs, _ in REFUSED]
    for _, inputs, _ in requests:
        inputs.update({key: (KINDS.get(key, "INT32"), value) for key, value in inputs.items()})
    files = [tmp_path / name for name in ("requests.json", "answers.npz")]
    files[0].write_text(json.dumps(requests))

    with triton(serve_python, model_folder) as addresses:
        clients = run_alone(serve_python, tmp_path, "-c", TRITON_CLIENTS, *addresses, *files)
        said, _ = clients.communicate(timeout=600)
        assert clients.returncode == 0, said
        with urllib.request.urlopen(f"http://{addresses[0]}/v2/models/tiny/stats") as answer:
            (stats,) = json.load(answer)["model_stats"]
    refused = json.loads(said.splitlines()[-1])
    assert refused[: len(wanted)] == [None] * len(wanted)
    for found, (_, sentence) in zip(refused[len(wanted) :], REFUSED):
        assert sentence in found and "{{node" not in found
    with np.load(files[1]) as answers:
        for number, outputs in enumerate(wanted):
            for name, value in outputs.items():
                np.testing.assert_array_equal(answers[f"{number} {name}"], value)
    assert len({outputs["images"].tobytes() for outputs in wanted[:12]}) == 12
    # Of more images than any one has asked for: those of several clients.
    assert max(batch["batch_size"] for batch in stats["batch_stats"]) > 3


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


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_onnx_of_experts_is_refused(serve_python, model_folder, tmp_path):
    status, said = convert(serve_python, model_folder, tmp_path / "tiny.onnx")
    assert status == 2 and "holds 2 networks" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("patch_size", [1, 4])
def test_onnx_denoises_as_the_saved_model(serve_python, tmp_path, patch_size):
    folder = export(tiny_denoiser(tiny_config(network__patch_size=patch_size)), tmp_path / "model")
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
