"""Serves an export over HTTP with Ray Serve: python examples/serve.py exports/avatars64 --port=8501

The protocol is TensorFlow Serving's REST API for one model in version 1. NAME is the folder's name:

  GET  /v1/models/NAME             the status; also /v1/models/NAME/versions/1
  GET  /v1/models/NAME/metadata    the signatures, and the export's metadata as "pdm_tf"
  POST /v1/models/NAME:predict     a call

  {"inputs": {"seed": 0, "labels": [0, 1], "guidance": 1.5}}             -> {"outputs": images}
  {"instances": [{"seed": 0, "labels": 0, "guidance": 1.5}, ...]}        -> {"predictions": images}

"signature_name" chooses the signature, serving_default (which samples) by default; "inputs" may leave out
what that has a default for. Images are uint8 (B, H, W, C) as nested lists; several outputs are an object of
columns, or one a row. Errors are status 400 or 404 with {"error": reason}. The export's warm-up requests are
run before the first answer.

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
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # several models share a GPU
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers of its use otherwise

import google.protobuf
import numpy as np
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from tensorflow.core.protobuf import saved_model_pb2

VERSION = "1"
OLD_PROTOBUF = int(google.protobuf.__version__.partition(".")[0]) < 5
WITH_EMPTY = "including_default_value_fields" if OLD_PROTOBUF else "always_print_fields_with_no_presence"
PATH = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+))?(?P<verb>/metadata|:predict|)"


class RequestError(Exception):
    """The reason why a request is refused, and its HTTP status."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Model:
    """An export's SavedModel behind TensorFlow Serving's REST API, without an HTTP server.

    `only` is the one signature that will be called; all by default.
    """

    def __init__(self, folder: str, only: str | None = None):
        self.turn = threading.Lock()  # a call uses all cores: on CPUs, two at once take longer than in turn
        self.name = os.path.basename(folder)
        self.signatures = tf.saved_model.load(folder).signatures
        with open(os.path.join(folder, "saved_model.pb"), "rb") as file:
            (graph,) = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs
        with open(os.path.join(folder, "assets.extra", "pdm_tf.json")) as file:
            metadata = json.load(file)
        self.defaults = {name: about.get("defaults", {}) for name, about in metadata["signatures"].items()}
        self.defaults["serving_default"] = self.defaults["sample"]
        described = {name: each for name, each in graph.signature_def.items() if name in self.signatures}
        self.inputs = {name: {key: i.dtype for key, i in s.inputs.items()} for name, s in described.items()}
        # As TensorFlow Serving writes it in JSON, with what is empty.
        options = {"preserving_proto_field_name": True, WITH_EMPTY: True}
        signatures = {name: MessageToDict(signature, **options) for name, signature in described.items()}
        self.metadata = {
            "model_spec": {"name": self.name, "signature_name": "", "version": VERSION},
            "metadata": {"signature_def": {"signature_def": signatures}},
            "pdm_tf": metadata,
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
        found = re.fullmatch(PATH, path)
        if not found or method != ("POST" if found["verb"] == ":predict" else "GET"):
            raise RequestError(400, f"Malformed request: {method} {path}")
        if found["name"] != self.name or found["version"] not in (None, VERSION):
            raise RequestError(404, f"Servable not found for request: {path}")
        if found["verb"] == ":predict":
            return self.predict(body)
        if found["verb"] == "/metadata":
            return self.metadata
        status = {"error_code": "OK", "error_message": ""}
        return {"model_version_status": [{"version": VERSION, "state": "AVAILABLE", "status": status}]}

    def predict(self, body: bytes) -> dict:
        """Calls a signature with the columns or rows of a request."""
        request = parsed(body)
        name = request.get("signature_name", "serving_default")
        if name not in self.inputs:
            raise RequestError(400, f'Serving signature name: "{name}" not found in signature def')
        rows = "instances" in request
        values = columns(request["instances"], self.inputs[name]) if rows else request["inputs"]
        outputs = {key: value.tolist() for key, value in self.call(name, values).items()}
        if not rows:
            return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
        if len(outputs) == 1:
            return {"predictions": next(iter(outputs.values()))}
        return {"predictions": [dict(zip(outputs, row)) for row in zip(*outputs.values())]}

    def call(self, name: str, values: dict) -> dict[str, np.ndarray]:
        """The outputs of a signature; raises RequestError with the export's own sentence."""
        try:
            values = {**self.defaults.get(name, {}), **values}
            unknown = set(values) - set(self.inputs[name])
            if unknown:
                raise RequestError(400, f"Unknown input: {', '.join(sorted(unknown))}")
            inputs = {key: converted(key, values[key], dtype) for key, dtype in self.inputs[name].items()}
            with self.turn:
                return {key: value.numpy() for key, value in self.signatures[name](**inputs).items()}
        except KeyError as error:
            raise RequestError(400, f"Missing named input: {error}") from error
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            reason = str(error).rpartition("assertion failed:")[2].partition("[[{{node")[0]
            raise RequestError(400, " ".join(reason.split())[:500]) from error


def parsed(body: bytes) -> dict:
    """A request's JSON object, with either columns or rows; raises RequestError."""
    try:
        request = json.loads(body, parse_constant=refused_constant)
    except ValueError as error:  # not JSON, or no text
        raise RequestError(400, f"JSON Parse error: {error}") from error
    if not isinstance(request, dict) or ("inputs" in request) == ("instances" in request):
        raise RequestError(400, "a request is an object with one of 'inputs' and 'instances'")
    if not isinstance(request.get("inputs", {}), dict):
        raise RequestError(400, "'inputs' must be an object with a value for each input")
    if not isinstance(request.get("signature_name", ""), str):
        raise RequestError(400, "'signature_name' must be a string")
    return request


def refused_constant(name: str) -> None:
    """Raises ValueError: NaN and Infinity are no JSON."""
    raise ValueError(f"{name} is no number")


def columns(instances: typing.Any, names: typing.Iterable[str]) -> dict:
    """The rows of "instances" as columns; each row has a value for each input; raises RequestError."""
    if not isinstance(instances, list) or not instances:
        raise RequestError(400, "'instances' must be a list of rows, at least one")
    for number, row in enumerate(instances):
        if not isinstance(row, dict) or set(row) != set(names):
            wanted = ",".join(sorted(names))
            raise RequestError(400, f"element: {number} of 'instances': keys must be: {wanted}")
    return {name: [row[name] for row in instances] for name in names}


def converted(name: str, value: typing.Any, dtype: int) -> tf.Tensor:
    """A JSON value as a tensor of a type; raises ValueError or TypeError."""
    tensor = tf.constant(value, dtype)
    if tensor.dtype.is_integer and not np.array_equal(tensor.numpy(), value):  # TensorFlow cuts bits off
        raise ValueError(f"{name}: a number is beyond what {tensor.dtype.name} holds")
    return tensor


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
    parser.add_argument("folder", help="an export")
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
    gpus = min(1, len(tf.config.list_physical_devices("GPU")))  # Ray hides those that are not asked for
    serve.run(serve.deployment(Served, ray_actor_options={"num_gpus": gpus}).bind(folder))
    address = f"http://{arguments.host}:{arguments.port}/v1/models/{os.path.basename(folder)}"
    print(f"serving {address}", flush=True)
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
