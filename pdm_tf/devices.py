"""Where a run computes: one device, several, several machines, or a TPU."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from pdm_tf.errors import UserError, one_line

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

    "auto" is a TPU if TPU_NAME is set, the cluster of TF_CONFIG if that names several machines, all GPUs if
    there are any, else the CPU.

    Raises:
      UserError: TF_CONFIG cannot be understood.
    """
    if name != "auto":
        return name, "as asked for"
    if os.environ.get("TPU_NAME"):
        return "tpu", f"TPU_NAME={os.environ['TPU_NAME']}"
    cluster = _cluster(os.environ.get("TF_CONFIG", ""))
    if cluster and cluster.others:
        return "multi_worker", f"TF_CONFIG names {len(cluster.others) + 1} machines"
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        return "mirrored", f"{gpus} GPU"
    return "cpu", f"no TPU_NAME, no cluster in TF_CONFIG, no GPU{_remedy()}"


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


def place_in_cluster() -> tuple[int, int]:
    """This process' number among those of TF_CONFIG's cluster, the chief's being 0, and how many they are.

    Nobody is waited for: it is for work that each does alone.

    Raises:
      UserError: the cluster is not described.
    """
    cluster = _needed_cluster()
    return cluster.everyone.index(cluster.own), len(cluster.everyone)


def of_this_machine() -> str:
    """The strategy that takes all devices of this machine: "mirrored" or "cpu"."""
    return "mirrored" if tf.config.list_physical_devices("GPU") else "cpu"


def _multi_worker() -> tf.distribute.Strategy:
    cluster = _needed_cluster()
    _meet(cluster.own, cluster.others)
    # TensorFlow waits without a limit, and with Python's lock held: only this ends it. All workers were
    # there a moment ago, so it is for one that dies just now.
    faulthandler.dump_traceback_later(CONNECT_SECONDS, exit=True)
    try:
        # It is told what was understood here: of TF_CONFIG itself it takes less, and takes some otherwise.
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster.jobs), task_type=cluster.job, task_id=cluster.index, rpc_layer="grpc"
        )
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    finally:
        faulthandler.cancel_dump_traceback_later()


class Cluster(NamedTuple):
    """The machines that train together: job -> addresses "host:port", and which of them this is."""

    jobs: dict[str, list[str]]
    job: str
    index: int

    @property
    def own(self) -> str:
        """This worker's address."""
        return self.jobs[self.job][self.index]

    @property
    def everyone(self) -> list[str]:
        """All workers' addresses, the chief's first."""
        return [address for job in sorted(self.jobs) for address in self.jobs[job]]

    @property
    def others(self) -> list[str]:
        """Those of the others."""
        return [address for address in self.everyone if address != self.own]


def _needed_cluster() -> Cluster:
    """TF_CONFIG's; raises UserError if it names none."""
    text = os.environ.get("TF_CONFIG", "")
    cluster = _cluster(text)
    if cluster is None:
        raise _wrong("no cluster is named", text)
    return cluster


def _cluster(text: str) -> Cluster | None:
    """What TF_CONFIG says; None where it names no cluster, as cloud environments that start one machine.

    An evaluator among the jobs does not count: training measures itself.

    Raises:
      UserError: what is wrong with it.
    """
    try:
        described = json.loads(text or "{}")
        cluster, task = described.get("cluster") or {}, described.get("task") or {}
        jobs = {job: list(addresses) for job, addresses in cluster.items() if job != "evaluator"}
        job, index = task.get("type"), task.get("index", 0)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"it is no JSON ({one_line(error)})", text) from error
    except (AttributeError, TypeError) as error:
        raise _wrong("it is of another form", text) from error
    if not cluster:
        return None
    for problem in _problems(jobs, job, index):
        raise _wrong(problem, text)
    return Cluster(jobs, job, int(index))


def _problems(jobs: dict[str, list], job: Any, index: Any) -> Iterator[str]:
    """What is wrong with a cluster's jobs and this task of it, in words."""
    yield from (
        f"job {one!r} cannot train, a chief and workers can" for one in set(jobs) - {"chief", "worker"}
    )
    addresses = [address for one in sorted(jobs) for address in jobs[one]]
    yield from (f"{address!r} is no host:port" for address in addresses if not _is_address(address))
    yield from (f"{address} is named twice" for address in addresses if addresses.count(address) > 1)
    if job == "evaluator":
        yield "this is the evaluator, and training evaluates by itself: do not start it"
    elif job not in jobs:
        yield f"this task's type is {job!r}, no job of the cluster"
    elif isinstance(index, bool) or not re.fullmatch(r"\d{1,9}", str(index), re.ASCII):
        yield f"this task's index is {index!r}, no number from 0 on"
    elif int(index) >= len(jobs[job]):
        yield f"this task is {job} {index} of {len(jobs[job])}, which are numbered from 0 on"


def _wrong(problem: str, text: str) -> UserError:
    return UserError(
        f"TF_CONFIG: {problem}: for several machines set TF_CONFIG on every worker to "
        '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}; '
        f"it is {text or 'not set'!r}"
    )


def _is_address(address: Any) -> bool:
    found = isinstance(address, str) and re.fullmatch(
        r"(\[[^\[\]\s]+\]|[^:\s]+):(\d{1,5})", address, re.ASCII
    )
    return bool(found) and 0 < int(found[2]) < 65536


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _meet(own: str, others: list[str]) -> None:
    """Waits until all other workers listen, listening too meanwhile; whoever has seen all goes on."""
    try:
        listener = _listener(_host_and_port(own)[1])
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


def _listener(port: int) -> socket.socket:
    """Listens on a port, by IPv6 too where this machine has it."""
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
    return socket.create_server(("", port))


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
