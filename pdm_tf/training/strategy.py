"""Where a run computes: one device, several, several machines, or a TPU."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator

import tensorflow as tf

from flags.errors import UserError

CONNECT_SECONDS = int(os.environ.get("PDM_TF_CONNECT_SECONDS", "300"))


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of `--strategy`; must come before any other use of TensorFlow.

    Args:
      name: "cpu"; "mirrored", all GPUs of this machine; "multi_worker", the cluster of TF_CONFIG; "tpu", that
        of TPU_NAME; or "auto": a TPU if TPU_NAME is set, the cluster if TF_CONFIG is, all GPUs if there are
        any, else the CPU.
    Raises:
      UserError: there is no such device, or the cluster is not described or cannot be reached.
    """
    if name == "auto":
        name, reason = _choose()
        print(f"strategy: {name} ({reason})", flush=True)
    if name == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return tf.distribute.get_strategy()
    if name == "mirrored":
        if not tf.config.list_physical_devices("GPU"):
            raise UserError("--strategy=mirrored: TensorFlow sees no GPU on this machine; use --strategy=cpu")
        return tf.distribute.MirroredStrategy()
    return _multi_worker() if name == "multi_worker" else _tpu()


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy computes on TPUs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one of its cluster that writes the run folder."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or not resolver.task_type:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


def _choose() -> tuple[str, str]:
    if os.environ.get("TPU_NAME"):
        return "tpu", f"TPU_NAME={os.environ['TPU_NAME']}"
    if os.environ.get("TF_CONFIG"):
        return "multi_worker", "TF_CONFIG is set"
    gpus = len(tf.config.list_physical_devices("GPU"))
    return ("mirrored", f"{gpus} GPU") if gpus else ("cpu", "no TPU_NAME, no TF_CONFIG, no GPU")


def _multi_worker() -> tf.distribute.Strategy:
    text = os.environ.get("TF_CONFIG", "")
    try:
        described = json.loads(text)
        task, workers = described["task"], described["cluster"]
        address = workers[task["type"]][task["index"]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            '--strategy=multi_worker: set TF_CONFIG on every worker to {"cluster": {"worker": ["host:port", '
            f'...]}}, "task": {{"type": "worker", "index": 0}}}}; it is {text or "not set"!r}'
        ) from error
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=CONNECT_SECONDS)
    with _time_limit(
        f"--strategy=multi_worker: {address} waited {CONNECT_SECONDS} s for the other workers of {workers}"
    ):
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def _tpu() -> tf.distribute.Strategy:
    name = os.environ.get("TPU_NAME", "")
    try:
        with _time_limit(f"--strategy=tpu: TPU {name!r} did not answer within {CONNECT_SECONDS} s"):
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the resolver raises what its HTTP and metadata clients happen to raise
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--strategy=tpu: TPU {name!r} cannot be reached ({reason}); set TPU_NAME, or use --strategy=cpu"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


@contextlib.contextmanager
def _time_limit(message: str) -> Iterator[None]:
    """Ends the process with one line if the block hangs: TensorFlow's own waits cannot be interrupted."""

    def give_up():
        print(
            f"error: {message}: check that all are running and reachable, then start all again",
            file=sys.stderr,
        )
        sys.stderr.flush()
        os._exit(2)

    timer = threading.Timer(CONNECT_SECONDS, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
