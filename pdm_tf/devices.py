"""Where a run computes: one device, several, several machines, or a TPU."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tensorflow as tf

from pdm_tf import stack
from pdm_tf.errors import UserError, one_line

CONNECT_SECONDS = "PDM_TF_CONNECT_SECONDS"  # the environment variable
# What TensorFlow raises when a worker is gone, whatever it was doing just then.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)


def connect_seconds() -> int:
    """How long to wait for other machines: PDM_TF_CONNECT_SECONDS, 300 where it is not set or empty."""
    text = os.environ.get(CONNECT_SECONDS, "").strip() or "300"
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        raise UserError(f"{CONNECT_SECONDS}={text!r} in the environment: write whole seconds, such as 300")
    return int(text)


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of a name; must come before any other use of TensorFlow.

    Args:
      name: "cpu"; "mirrored", all GPUs of this machine; "multi_worker", the cluster of TF_CONFIG; or "tpu",
        that of TPU_NAME.
    Raises:
      UserError: there is no such device, or the cluster is not described or cannot be reached.
    """
    tf.get_logger().setLevel("ERROR")  # it logs every collective that it traces
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
    """The strategy that a name stands for here, and what it computes on.

    "auto" is a TPU if TPU_NAME is set, the cluster of TF_CONFIG if that names several machines, all GPUs if
    there are any, else the CPU.
    """
    if name != "auto":
        return name, name
    if os.environ.get("TPU_NAME"):
        return "tpu", f"the TPU {os.environ['TPU_NAME']}"
    cluster = find_cluster()
    if cluster and cluster.others:
        return "multi_worker", f"the {len(cluster.others) + 1} machines of TF_CONFIG"
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        return "mirrored", f"{gpus} GPU{'s' if gpus > 1 else ''}"
    return "cpu", f"the CPU{_remedy()}"


def has_accelerator(name: str) -> bool:
    """Whether a strategy, not "auto", computes on more than CPUs."""
    return name == "tpu" or (name != "cpu" and bool(tf.config.list_physical_devices("GPU")))


def fitting_precision(name: str) -> str:
    """The precision that the devices of a strategy, not "auto", are made for: what "auto" is in a new run.

    TPUs, GPUs of compute capability 8.0 and above (NVIDIA Ampere), and CPUs with instructions for it multiply
    bfloat16 faster than float32.
    """
    gpus = [] if name == "cpu" else tf.config.list_physical_devices("GPU")
    if name == "tpu":
        fits = True
    elif gpus:
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        fits = all(known.get("compute_capability", (0, 0)) >= (8, 0) for known in details)
    else:
        fits = stack.cpu_has_bfloat16()
    return "mixed_bfloat16" if fits else "float32"


def _remedy() -> str:
    """What to do where there is a GPU that TensorFlow does not see; "" where there is none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if hidden or not shutil.which("nvidia-smi"):
        return ""
    return "; this machine seems to have a GPU: `make setup GPU=1` installs TensorFlow's CUDA libraries"


def place_in_cluster() -> tuple[int, int]:
    """The number of this process among those of TF_CONFIG's cluster, 0 being the chief's, and their count."""
    cluster = _needed_cluster()
    return cluster.everyone.index(cluster.address), len(cluster.everyone)


def of_this_machine() -> str:
    """The strategy that takes all devices of this machine: "mirrored" or "cpu"."""
    return "mirrored" if tf.config.list_physical_devices("GPU") else "cpu"


class Cluster(NamedTuple):
    """The machines that train together."""

    jobs: dict[str, list[str]]  # "chief" or "worker" -> addresses "host:port"
    job: str  # that of this process, as the next two
    index: int
    address: str

    @property
    def everyone(self) -> list[str]:
        """All addresses, the chief's first."""
        return [address for job in sorted(self.jobs) for address in self.jobs[job]]

    @property
    def others(self) -> list[str]:
        """The addresses of the other processes."""
        return [address for address in self.everyone if address != self.address]


def find_cluster() -> Cluster | None:
    """The cluster of TF_CONFIG; None where it names none, as in cloud environments of one machine.

    An evaluator among the jobs does not count: training measures itself.
    """
    if not os.environ.get("TF_CONFIG"):
        return None
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        spec = resolver.cluster_spec()
        if not spec or not spec.jobs:
            return None
        job = resolver.task_type
        index = resolver.task_id or 0
        address = spec.task_address(job, index)
    except Exception as error:  # whatever its JSON reader and its own checks happen to raise
        raise _wrong_cluster(one_line(error)) from error
    jobs = {name: addresses for name, addresses in spec.as_dict().items() if name != "evaluator"}
    cluster = Cluster(jobs, job, index, address)
    if job not in jobs or set(jobs) - {"chief", "worker"}:
        raise _wrong_cluster("a chief and workers can train, no other jobs")
    for one in cluster.everyone:
        if not re.fullmatch(r".+:\d{1,5}", one, re.ASCII) or cluster.everyone.count(one) > 1:
            raise _wrong_cluster(f"{one!r} is no host:port, or is named twice")
    return cluster


def _needed_cluster() -> Cluster:
    cluster = find_cluster()
    if cluster is None:
        raise _wrong_cluster("no cluster is named")
    return cluster


def _wrong_cluster(problem: str) -> UserError:
    return UserError(
        f"TF_CONFIG: {problem}: for several machines set TF_CONFIG on every worker to "
        '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}; '
        f"it is {os.environ.get('TF_CONFIG', '') or 'not set'!r}"
    )


def _multi_worker() -> tf.distribute.Strategy:
    cluster = _needed_cluster()
    seconds = connect_seconds()
    _meet(cluster.address, cluster.others, seconds)
    # TensorFlow waits without a limit, and with Python's lock held: only this ends it. All workers were
    # there a moment ago, so it is for one that dies just now.
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster.jobs), task_type=cluster.job, task_id=cluster.index, rpc_layer="grpc"
        )
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    finally:
        faulthandler.cancel_dump_traceback_later()


def _meet(address: str, others: Sequence[str], seconds: float) -> None:
    """Waits until all other workers listen, listening too meanwhile; whoever has seen all goes on."""
    try:
        listener = _listener(_host_and_port(address)[1])
    except (OSError, OverflowError) as error:
        raise UserError(
            f"strategy multi_worker: cannot listen at {address} ({one_line(error)}): give this worker "
            "another port in TF_CONFIG on all workers, or end the process that has it"
        ) from error
    missing = list(others)
    begin = time.monotonic()
    with listener:
        while missing := [other for other in missing if not _listens(other)]:
            if time.monotonic() - begin > seconds:
                raise UserError(
                    f"strategy multi_worker: {address} waited {seconds} s for {', '.join(missing)}: start "
                    "all workers together, each reachable at its address in TF_CONFIG"
                )
            time.sleep(0.2)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


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
    seconds = connect_seconds()
    late = (
        f"strategy tpu: TPU {name!r} did not answer within {seconds} s: check that it is running and "
        "reachable, then start again"
    )
    timer = threading.Timer(seconds, _end_now, [late])  # TensorFlow's own waits cannot be interrupted
    timer.daemon = True
    timer.start()
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the resolver raises what its HTTP and metadata clients happen to raise
        raise UserError(
            f"strategy tpu: TPU {name!r} cannot be reached ({one_line(error)}); set TPU_NAME, or use cpu"
        ) from error
    finally:
        timer.cancel()
    return tf.distribute.TPUStrategy(resolver)


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
        here = tf.constant(numbers, tf.int64)
        # If each worker's numbers, times the replicas, are the sum over all, they are all equal.
        return bool(tf.reduce_all(self._sum(here) == here * self.replicas))

    def wait(self) -> None:
        """Returns once all workers have called it."""
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
