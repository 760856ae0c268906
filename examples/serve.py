"""Serves an export over HTTP with Ray Serve: python examples/serve.py exports/emoji64 --port=8501

It speaks TensorFlow Serving's REST form, so a client may go from one to the other. POST to
/v1/models/NAME:predict, NAME being the folder's,

  {"signature_name": "sample", "inputs": {"seed": 0, "labels": [0, 1], "guidance": 1.5}}

answers {"outputs": images}: uint8 (B, H, W, C) as nested lists, or an object where a signature has several
outputs. What cannot be done is status 400 or 404 with {"error": why}. GET /v1/models/NAME describes it.

It needs what requirements-serve.txt lists and nothing of this project. Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default on CPUs without AVX512-VNNI, and slower
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray tells its makers of its use otherwise

import ray
import tensorflow as tf
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from ray import serve

api = FastAPI()


@api.exception_handler(HTTPException)
def answer_error(_: Request, error: HTTPException) -> JSONResponse:
    """TensorFlow Serving's form of an error."""
    return JSONResponse({"error": error.detail}, error.status_code)


@serve.deployment
@serve.ingress(api)
class Model:
    """One SavedModel. FastAPI runs plain methods in threads of their own."""

    def __init__(self, folder: str):
        self.turn = threading.Lock()  # a call uses all cores: on CPUs, two at once take longer than in turn
        self.name = os.path.basename(folder)
        self.model = tf.saved_model.load(folder)
        with open(os.path.join(folder, "assets.extra", "pdm_tf.json")) as file:
            self.metadata = json.load(file)
        # TensorFlow optimizes a graph in its first call: here, rather than in a client's time.
        for guidance in (1.0, 1.5) if self.metadata["num_classes"] else (1.0,):
            self.model.signatures["sample"](
                seed=tf.constant(0), labels=tf.constant([0]), guidance=tf.constant(guidance)
            )

    @api.get("/v1/models/{name}")
    def describe(self, name: str) -> dict:
        """The export's metadata: image shape, classes, sampling, signatures."""
        self.check_name(name)
        return self.metadata

    @api.post("/v1/models/{name}:predict")
    def predict(self, name: str, body: dict) -> dict:
        """Calls a signature, `sample` by default."""
        self.check_name(name)
        try:
            signature = self.model.signatures[body.get("signature_name", "sample")]
            specs = signature.structured_input_signature[1]
            inputs = {key: tf.constant(body["inputs"][key], spec.dtype) for key, spec in specs.items()}
            with self.turn:
                outputs = {key: value.numpy() for key, value in signature(**inputs).items()}
        except KeyError as error:
            raise HTTPException(400, f"there is no {error}; see GET /v1/models/{name}") from error
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            reason = str(error).rpartition("assertion failed:")[2]
            raise HTTPException(400, " ".join(reason.split())[:500]) from error
        lists = {key: value.tolist() for key, value in outputs.items()}
        return {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}

    def check_name(self, name: str) -> None:
        """404 for any other model's name."""
        if name != self.name:
            raise HTTPException(404, f"there is no model {name}; this one is {self.name}")


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
    ray.init(include_dashboard=False)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which takes them for itself
        signal.signal(number, lambda *_: stop.set())
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    serve.run(Model.bind(folder))
    address = f"http://{arguments.host}:{arguments.port}/v1/models/{os.path.basename(folder)}"
    print(f"serving {address}", flush=True)
    stop.wait()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
