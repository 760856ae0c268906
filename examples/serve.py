"""Serves an export over HTTP with Ray Serve: python examples/serve.py exports/avatars64 --port=8501

It answers as TensorFlow Serving's REST API does for one model in one version, 1, so a client may go from one
to the other. NAME is the folder's name:

  GET  /v1/models/NAME             is it there? also /v1/models/NAME/versions/1
  GET  /v1/models/NAME/metadata    its signatures; also /v1/models/NAME/versions/1/metadata
  POST /v1/models/NAME:predict     also /v1/models/NAME/versions/1:predict

  {"inputs": {"seed": 0, "labels": [0, 1], "guidance": 1.5}}             answers {"outputs": images}
  {"instances": [{"seed": 0, "labels": 0, "guidance": 1.5}, ...]}        answers {"predictions": images}

"signature_name" chooses the signature, serving_default (which draws) by default. Images are uint8
(B, H, W, C) as nested lists; of several outputs there is an object of each, or one a row. What cannot be done
is status 400 or 404 with {"error": why}. Beside TensorFlow Serving's own, the answer of /metadata holds what
the export says of itself, as "pdm_tf". Before the first answer the export's warm-up requests are run, as
TensorFlow Serving does.

It needs what requirements-serve.txt lists and nothing of this project. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import threading
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default on CPUs without AVX512-VNNI, and slower
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers of its use otherwise

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

VERSION = "1"
PLACE = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"


class RequestError(Exception):
    """What is wrong with a request, and the HTTP status that says so."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Model:
    """A SavedModel and the answers of TensorFlow Serving's REST API for it; knows no HTTP server.

    Args:
      folder: what --mode=export wrote.
      only: the one signature that will be called; all by default.
    """

    def __init__(self, folder: str, only: str | None = None):
        self.turn = threading.Lock()  # a call uses all cores: on CPUs, two at once take longer than in turn
        self.name = os.path.basename(folder)
        self.signatures = tf.saved_model.load(folder).signatures
        with open(os.path.join(folder, "saved_model.pb"), "rb") as file:
            (graph,) = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
        with open(os.path.join(folder, "assets.extra", "pdm_tf.json")) as file:
            own = json.load(file)
        described = {name: told for name, told in graph.signature_def.items() if name in self.signatures}
        self.inputs = {name: {key: i.dtype for key, i in s.inputs.items()} for name, s in described.items()}
        signatures = {name: told_signature(signature) for name, signature in described.items()}
        self.metadata = {
            "model_spec": {"name": self.name, "signature_name": "", "version": VERSION},
            "metadata": {"signature_def": {"signature_def": signatures}},
            "pdm_tf": own,
        }
        self.warm_up(os.path.join(folder, "assets.extra", "tf_serving_warmup_requests"), only)

    def warm_up(self, path: str, only: str | None) -> None:
        """TensorFlow optimizes a graph in its first call: here, rather than in a client's time."""
        from tensorflow_serving.apis import prediction_log_pb2

        for record in tf.data.TFRecordDataset(path):
            request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            if only in (None, request.model_spec.signature_name):
                self.signatures[request.model_spec.signature_name](**inputs)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        """The HTTP status and the JSON object that answer a request."""
        try:
            return 200, self.answered(method, path, body)
        except RequestError as refused:
            return refused.status, {"error": str(refused)}

    def answered(self, method: str, path: str, body: bytes) -> dict:
        """The JSON object that answers a request; raises RequestError."""
        found = re.fullmatch(PLACE + r"(?P<what>/metadata|:predict|:classify|:regress|)", path)
        what = found and found["what"]
        if not found or method != ("POST" if what.startswith(":") else "GET"):
            raise RequestError(400, f"Malformed request: {method} {path}")
        name, version = found["name"], found["version"]
        if found["label"]:
            raise RequestError(400, f"Unrecognized servable version label: {found['label']}")
        if name != self.name or version not in (None, VERSION):
            raise RequestError(404, missing(name, version, is_status=not what))
        if what == ":predict":
            return self.predict(body)
        if what == "/metadata":
            return self.metadata
        if what:
            kind = {":classify": "classification", ":regress": "regression"}[what]
            raise RequestError(400, f"this model has no signature for {kind}: use :predict")
        status = {"error_code": "OK", "error_message": ""}
        return {"model_version_status": [{"version": VERSION, "state": "AVAILABLE", "status": status}]}

    def predict(self, body: bytes) -> dict:
        """Calls a signature with the columns or rows of a request."""
        request = parsed(body)
        name = request.get("signature_name", "serving_default")
        if name not in self.inputs:
            raise RequestError(400, f'Serving signature name: "{name}" not found in signature def')
        dtypes, rows = self.inputs[name], "instances" in request
        values = columns(request["instances"], dtypes) if rows else named(request["inputs"], dtypes)
        outputs = {key: value.tolist() for key, value in self.call(name, values).items()}
        if not rows:
            return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
        if len(outputs) == 1:
            return {"predictions": next(iter(outputs.values()))}
        return {"predictions": [dict(zip(outputs, row)) for row in zip(*outputs.values())]}

    def call(self, name: str, values: dict) -> dict[str, np.ndarray]:
        """The outputs of a signature; raises RequestError with the export's own sentence."""
        try:
            inputs = {key: converted(key, values[key], dtype) for key, dtype in self.inputs[name].items()}
            with self.turn:
                return {key: value.numpy() for key, value in self.signatures[name](**inputs).items()}
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            reason = str(error).rpartition("assertion failed:")[2].partition("[[{{node")[0]
            raise RequestError(400, " ".join(reason.split())[:500]) from error


def missing(name: str, version: str | None, is_status: bool) -> str:
    """TensorFlow Serving's words for a model, or a version of it, that is not there."""
    if is_status and version is None:
        return f"Could not find any versions of model {name}"
    if is_status:
        return f"Could not find version {version} of model {name}"
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return f"Servable not found for request: {wanted}"


def parsed(body: bytes) -> dict:
    """A request's JSON object, with either columns or rows; raises RequestError."""
    try:
        request = json.loads(body)
    except ValueError as error:  # not JSON, or no text
        raise RequestError(400, f"JSON Parse error: {error}") from error
    if not isinstance(request, dict):
        raise RequestError(400, "the request is no JSON object")
    if not isinstance(request.get("signature_name", ""), str):
        raise RequestError(400, "'signature_name' must be a string")
    if ("inputs" in request) == ("instances" in request):
        if "inputs" in request:
            raise RequestError(400, "expecting only one of 'inputs' or 'instances' keys to exist")
        raise RequestError(400, "Missing 'inputs' or 'instances' key")
    return request


def named(inputs: typing.Any, names: typing.Iterable[str]) -> dict:
    """The columns of "inputs": a value for each input of the signature; raises RequestError."""
    if not isinstance(inputs, dict):
        raise RequestError(400, "inputs is a plain value/list, but expecting an object of several inputs")
    for name in names:
        if name not in inputs:
            raise RequestError(400, f"Missing named input: {name} in 'inputs' object.")
    return inputs


def columns(instances: typing.Any, names: typing.Iterable[str]) -> dict:
    """The rows of "instances" as columns; each row has a value for each input; raises RequestError."""
    if not isinstance(instances, list):
        raise RequestError(400, "Excepting 'instances' to be an list/array")
    if not instances:
        raise RequestError(400, "No values in 'instances' array")
    for number, row in enumerate(instances):
        if not isinstance(row, dict) or set(row) != set(names):
            wanted = ",".join(sorted(names))
            raise RequestError(
                400,
                f"Failed to process element: {number} of 'instances' list: keys must be: {wanted}",
            )
    return {name: [row[name] for row in instances] for name in names}


def converted(name: str, value: typing.Any, dtype: int) -> tf.Tensor:
    """A JSON value as a tensor; ValueError or TypeError if it is none of that type."""
    tensor = tf.constant(value, dtype)
    if tensor.dtype.is_integer and not np.array_equal(tensor.numpy(), value):  # TensorFlow cuts bits off
        raise ValueError(f"{name}: a number is beyond what {tensor.dtype.name} holds")
    return tensor


def told_signature(signature) -> dict:
    """A SignatureDef as TensorFlow Serving writes it in JSON."""

    def told(tensors) -> dict:
        return {
            key: {
                "dtype": "DT_" + tf.as_dtype(tensor.dtype).name.upper().replace("FLOAT32", "FLOAT"),
                "tensor_shape": {
                    "dim": [{"size": str(dim.size), "name": dim.name} for dim in tensor.tensor_shape.dim],
                    "unknown_rank": tensor.tensor_shape.unknown_rank,
                },
                "name": tensor.name,
            }
            for key, tensor in tensors.items()
        }

    return {
        "inputs": told(signature.inputs),
        "outputs": told(signature.outputs),
        "method_name": signature.method_name,
    }


class Served:
    """The deployment: each request is answered in a thread of its own."""

    def __init__(self, folder: str):
        self.model = Model(folder)

    async def __call__(self, request):
        """`request`: Starlette's."""
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import JSONResponse

        body = await request.body()
        status, content = await run_in_threadpool(
            self.model.answer, request.method, request.scope["path"], body
        )
        return JSONResponse(content, status)


def main():
    """Serves until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", help="what --mode=export wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8501)
    arguments = parser.parse_args()
    folder = os.path.abspath(arguments.folder)
    if not os.path.isfile(os.path.join(folder, "saved_model.pb")):
        parser.error(f"{folder} holds no SavedModel: write one with python main.py --mode=export")
    import ray
    from ray import serve

    ray.init(include_dashboard=False)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which takes them for itself
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    serve.run(serve.deployment(Served).bind(folder))
    address = f"http://{arguments.host}:{arguments.port}/v1/models/{os.path.basename(folder)}"
    print(f"serving {address}", flush=True)
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
