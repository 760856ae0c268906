"""Where a run computes: one device, several, several machines, or a TPU."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import operator
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator

import tensorflow as tf

from flags.errors import UserError, one_line

CONNECT_SECONDS = int(os.environ.get("PDM_TF_CONNECT_SECONDS", "300"))
# What TensorFlow raises when a worker is gone, whatever it was doing just then.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of a name; must come before any other use of TensorFlow.

    Args:
      name: "cpu"; "mirrored", all GPUs of this machine; "multi_worker", the cluster of TF_CONFIG; or "tpu",
        that of TPU_NAME.
    Raises:
      UserError: there is no such device, or the cluster is not described or cannot be reached.
    """
    tf.get_logger().setLevel("ERROR")  # it tells of every collective that it traces
    if name == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return tf.distribute.get_strategy()
    if name == "mirrored":
        if not tf.config.list_physical_devices("GPU"):
            raise UserError(f"strategy mirrored: TensorFlow sees no GPU on this machine; use cpu{_remedy()}")
        return tf.distribute.MirroredStrategy()
    return _multi_worker() if name == "multi_worker" else _tpu()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one of its cluster that writes the run folder."""
    resolver = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or not resolver.task_type:
        return True
    has_chief = "chief" in resolver.cluster_spec().jobs
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


def choose(name: str) -> tuple[str, str]:
    """The strategy that a name stands for here, and why.

    "auto" is a TPU if TPU_NAME is set, the cluster if TF_CONFIG is, all GPUs if there are any, else the CPU.
    """
    if name != "auto":
        return name, "as asked for"
    if os.environ.get("TPU_NAME"):
        return "tpu", f"TPU_NAME={os.environ['TPU_NAME']}"
    if os.environ.get("TF_CONFIG"):
        return "multi_worker", "TF_CONFIG is set"
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        return "mirrored", f"{gpus} GPU"
    return "cpu", f"no TPU_NAME, no TF_CONFIG, no GPU{_remedy()}"


def has_accelerator(name: str) -> bool:
    """Whether a strategy, not "auto", computes on more than CPUs."""
    return name == "tpu" or (name != "cpu" and bool(tf.config.list_physical_devices("GPU")))


def fitting_precision(name: str) -> str:
    """The precision that the devices of a strategy, not "auto", are made for: what "auto" is in a new run.

    TPUs, and GPUs of compute capability 8.0 and above (NVIDIA Ampere), multiply bfloat16 faster than float32.
    """
    if name == "tpu":
        return "mixed_bfloat16"
    gpus = [] if name == "cpu" else tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    fits = gpus and all(known.get("compute_capability", (0, 0)) >= (8, 0) for known in details)
    return "mixed_bfloat16" if fits else "float32"


def _remedy() -> str:
    """What to do where there is a GPU that TensorFlow does not see; "" where there is none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if hidden or not shutil.which("nvidia-smi"):
        return ""
    return "; this machine seems to have one: `make setup GPU=1` installs TensorFlow's CUDA libraries"


def _multi_worker() -> tf.distribute.Strategy:
    own, others = _cluster(os.environ.get("TF_CONFIG", ""))
    _meet(own, others)
    # TensorFlow waits without a limit, and with Python's lock held: only this ends it. All workers were
    # there a moment ago, so it is for one that dies just now.
    faulthandler.dump_traceback_later(CONNECT_SECONDS, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _cluster(text: str) -> tuple[str, list[str]]:
    """TF_CONFIG -> this worker's address and those of the others, each "host:port"."""
    try:
        described = json.loads(text)
        task, cluster = described["task"], described["cluster"]
        if not set(cluster) <= {"chief", "worker"}:
            raise ValueError(cluster)
        own = cluster[task["type"]][operator.index(task["index"])]
        addresses = [address for job in sorted(cluster) for address in cluster[job]]
        for address in addresses:
            _host_and_port(address)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            'strategy multi_worker: set TF_CONFIG on every worker to {"cluster": {"worker": ["host:port", '
            f'...]}}, "task": {{"type": "worker", "index": 0}}}}; it is {text or "not set"!r}'
        ) from error
    return own, [address for address in addresses if address != own]


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _meet(own: str, others: list[str]) -> None:
    """Waits until all other workers listen, listening too meanwhile; whoever has seen all goes on."""
    try:
        listener = socket.create_server(("", _host_and_port(own)[1]))
    except OSError as error:
        raise UserError(
            f"strategy multi_worker: cannot listen at {own} ({error.strerror}): give this worker another "
            "port in TF_CONFIG on all workers, or end the process that has it"
        ) from error
    missing, begin = others, time.monotonic()
    with listener:
        while missing := [address for address in missing if not _listens(address)]:
            if time.monotonic() - begin > CONNECT_SECONDS:
                raise UserError(
                    f"strategy multi_worker: {own} waited {CONNECT_SECONDS} s for {', '.join(missing)}: "
                    "start all workers together, each reachable at its address in TF_CONFIG"
                )
            time.sleep(0.2)


def _listens(address: str) -> bool:
    try:
        socket.create_connection(_host_and_port(address), timeout=5).close()
    except OSError:
        return False
    return True


def _tpu() -> tf.distribute.Strategy:
    name = os.environ.get("TPU_NAME", "")
    late = f"strategy tpu: TPU {name!r} did not answer within {CONNECT_SECONDS} s: check that it is running"
    try:
        with _time_limit(f"{late} and reachable, then start again"):
            resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
            tf.config.experimental_connect_to_cluster(resolver)
            tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the resolver raises what its HTTP and metadata clients happen to raise
        raise UserError(
            f"strategy tpu: TPU {name!r} cannot be reached ({one_line(error)}); set TPU_NAME, or use cpu"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


@contextlib.contextmanager
def _time_limit(message: str) -> Iterator[None]:
    """Ends the process with one line if the block hangs: TensorFlow's own waits cannot be interrupted."""
    timer = threading.Timer(CONNECT_SECONDS, _end_now, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _end_now(message: str) -> None:
    """Ends the process without TensorFlow's destructors, which wait for workers that are gone."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(2)


class Workers:
    """The processes of a strategy, which must call each method at the same point; for most it is one."""

    def __init__(self, strategy: tf.distribute.Strategy):
        self.alone = not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.replicas = strategy.num_replicas_in_sync

        @tf.function
        def sum_over_replicas(values):
            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, [values]), axis=None)

        self._sum = sum_over_replicas

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any worker."""
        return flag if self.alone else int(self._sum(tf.constant(int(flag)))) > 0

    def same(self, *numbers: int) -> bool:
        """Whether all workers have the same numbers."""
        if self.alone:
            return True
        own = tf.constant(numbers, tf.int64)
        # If each worker's own, times their number, is the sum of all, they are all equal.
        return bool(tf.reduce_all(self._sum(own) == own * self.replicas))

    def wait(self) -> None:
        """Returns once all workers have come here."""
        self.any(False)

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Ends the process, with one line and status 2, if the block fails or loses another worker."""
        try:
            yield
        except (UserError, tf.errors.OpError) as error:
            if self.alone:
                raise
            if isinstance(error, UserError):
                _end_now(str(error))
            if not isinstance(error, LOST) and "Collective" not in str(error):
                raise
            place = re.search(r"/job:(\w+)/replica:\d+/task:(\d+)", str(error))
            who = " ".join(place.groups()) if place else "another worker"
            _end_now(
                f"lost {who}: this worker ends too; start all of them again with the same command to go on "
                "from the last checkpoint"
            )
