"""What --strategy refuses, what `auto` chooses and why, and how long it waits."""

import json
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf

from pdm_tf import devices as module
from pdm_tf.commands.options import DeviceOptions
from pdm_tf.devices import Workers, choose, fitting_precision, has_accelerator, is_chief, make_strategy
from pdm_tf.errors import UserError
from tests.training.processes import addresses


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in ("TPU_NAME", "TF_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def cluster(workers=("a:1", "b:2"), task_type="worker", index=0, job="worker"):
    return json.dumps({"cluster": {job: list(workers)}, "task": {"type": task_type, "index": index}})


def test_auto_is_the_cpu_where_there_is_nothing_else_and_says_so(capsys, monkeypatch):
    assert choose("auto") == ("cpu", "the CPU")
    strategy = make_strategy("cpu")
    assert strategy.num_replicas_in_sync == 1 and is_chief(strategy)
    assert DeviceOptions().chosen_strategy() == "cpu"
    assert capsys.readouterr().out == "running on the CPU\n"


@pytest.mark.parametrize(("gpus", "having"), [([], {"tpu"}), (["gpu"], {"tpu", "mirrored", "multi_worker"})])
def test_an_accelerator_is_a_tpu_or_a_gpu_that_is_used(monkeypatch, gpus, having):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    assert {name for name in ("cpu", "mirrored", "multi_worker", "tpu") if has_accelerator(name)} == having


def test_auto_prefers_a_tpu_then_a_cluster_then_gpus(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu0", "gpu1"])
    assert choose("auto") == ("mirrored", "2 GPUs")
    monkeypatch.setenv("TF_CONFIG", cluster())
    assert choose("auto") == ("multi_worker", "the 2 machines of TF_CONFIG")
    monkeypatch.setenv("TPU_NAME", "node-1")
    assert choose("auto") == ("tpu", "the TPU node-1")


@pytest.mark.parametrize(("name", "capabilities", "precision"), [
    ("mirrored", [(9, 0), (12, 0)], "mixed_bfloat16"),
    ("mirrored", [(8, 6), (7, 5)], "float32"),
    ("mirrored", [None], "float32"),  # TensorFlow knows nothing of the card
    ("tpu", [], "mixed_bfloat16"),
])  # fmt: skip
def test_bfloat16_is_for_tpus_and_where_every_gpu_has_it(monkeypatch, name, capabilities, precision):
    gpus = list(range(len(capabilities)))
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(
        tf.config.experimental, "get_device_details",
        lambda gpu: {"compute_capability": capabilities[gpu]} if capabilities[gpu] else {},
    )  # fmt: skip
    assert fitting_precision(name) == precision


@pytest.mark.parametrize(("flags", "onednn", "precision"), [
    ("fpu avx2 avx512f avx512_vnni avx512_bf16", "1", "mixed_bfloat16"),
    ("avx512_bf16 amx_bf16", "0", "float32"),
    ("fpu avx2 avx512f avx512_vnni", "1", "float32"),
])  # fmt: skip
def test_bfloat16_is_for_cpus_with_instructions_for_it(monkeypatch, flags, onednn, precision):
    monkeypatch.setattr(pathlib.Path, "read_text", lambda path: f"model name: a CPU\nflags\t\t: {flags}\n")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
    assert fitting_precision("cpu") == precision


def test_a_gpu_that_tensorflow_does_not_see_is_spoken_of(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert choose("auto") == ("cpu", "the CPU")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "the CPU; this machine seems to have a GPU: `make setup GPU=1`" in choose("auto")[1]
    with pytest.raises(UserError, match="use cpu; this machine seems to have a GPU: `make setup GPU=1`"):
        make_strategy("mirrored")


@pytest.mark.parametrize("text", [
    "", "{", '{"cluster": ["a:1"], "task": {"type": "worker", "index": 0}}',
    cluster(index=2), cluster(("a", "b:2")),
])  # fmt: skip
def test_a_tf_config_that_cannot_be_is_refused_in_one_line_with_an_example(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UserError, match=r"^TF_CONFIG: .* set TF_CONFIG on every worker to {") as error:
        make_strategy("multi_worker")
    assert "\n" not in str(error.value)
    if text not in ("", "{}"):
        with pytest.raises(UserError, match=r"^TF_CONFIG: "):
            choose("auto")


def test_seconds_to_wait_are_300_where_none_are_set_and_no_others_than_whole_ones(monkeypatch):
    monkeypatch.setenv(module.CONNECT_SECONDS, "")
    assert module.connect_seconds() == 300
    monkeypatch.setenv(module.CONNECT_SECONDS, "x")
    with pytest.raises(UserError, match=r"^PDM_TF_CONNECT_SECONDS='x' in the environment: write whole"):
        module.connect_seconds()


@pytest.mark.parametrize("text", [
    "{}", '{"cluster": {}, "task": {"type": "worker", "index": 0}}', cluster(("a:1",)),
])  # fmt: skip
def test_a_tf_config_of_one_machine_or_none_is_this_machine(monkeypatch, text):
    monkeypatch.setenv("TF_CONFIG", text)
    assert choose("auto") == ("cpu", "the CPU")


def test_a_cluster_has_one_address_of_its_own_and_those_of_the_others(monkeypatch):
    jobs = {"worker": ["b:2", "[::1]:3"], "chief": ["a:1"]}
    described = {"cluster": {**jobs, "evaluator": ["e:4"]}, "task": {"type": "worker", "index": "1"}}
    monkeypatch.setenv("TF_CONFIG", json.dumps({**described, "environment": "cloud"}))
    found = module.find_cluster()
    assert found == (jobs, "worker", 1, "[::1]:3") and found.others == ["a:1", "b:2"]
    assert module._host_and_port("[::1]:3") == ("::1", 3)


def test_a_worker_waits_for_the_others_no_longer_than_the_limit(monkeypatch):
    own, other = addresses()
    monkeypatch.setenv(module.CONNECT_SECONDS, "1")
    monkeypatch.setenv("TF_CONFIG", cluster((own, other)))
    with pytest.raises(UserError, match=f"{own} waited 1 s for {other}: start all workers together"):
        make_strategy("multi_worker")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_workers_meet_whoever_comes_first(host):
    """Also when one has seen the other and left before the other looked: TensorFlow listens in its place."""
    own, other = (address.replace("127.0.0.1", host) for address in addresses())
    met, done = [], threading.Event()

    def work(mine, others):
        module._meet(mine, others, 60)
        met.append(mine)
        with module._listener(int(mine.rpartition(":")[2])):  # as TensorFlow does
            done.wait(30)

    threads = [threading.Thread(target=work, args=pair) for pair in ((own, [other]), (other, [own]))]
    threads[0].start()
    threads[0].join(0.5)
    assert not met
    threads[1].start()
    deadline = time.monotonic() + 20
    while len(met) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert set(met) == {own, other}


def test_a_port_that_is_taken_is_named():
    own, other = addresses()
    with socket.create_server(("", int(own.rpartition(":")[2]))):
        with pytest.raises(UserError, match=f"cannot listen at {own} .*: give this worker another port"):
            module._meet(own, [other], 60)


def test_a_tpu_that_cannot_be_reached_is_refused(monkeypatch):
    def unreachable():
        raise ValueError("no such name\nand more")

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", unreachable)
    with pytest.raises(UserError, match=r"cannot be reached \(no such name and more\); set TPU_NAME"):
        make_strategy("tpu")


def test_a_tpu_that_does_not_answer_ends_the_process_with_one_line(monkeypatch):
    monkeypatch.setenv(module.CONNECT_SECONDS, "1")
    program = (
        "import time; from pdm_tf import devices\n"
        "devices.tf.distribute.cluster_resolver.TPUClusterResolver = lambda: time.sleep(30)\n"
        "devices.make_strategy('tpu')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "did not answer within 1 s" in done.stderr.splitlines()[-1]


def one_line_end(monkeypatch):
    """Takes `_end_now`'s message instead of ending the tests."""

    def end(message):
        raise SystemExit(message)

    monkeypatch.setattr(module, "_end_now", end)


@pytest.mark.parametrize(("error", "line"), [
    (tf.errors.UnavailableError(None, None, "/job:worker/replica:0/task:1: closed"), "lost worker 1:"),
    (tf.errors.InternalError(None, None, "Collective ops is aborted by: x"), "lost another worker:"),
    (UserError("no space left"), "no space left"),
])  # fmt: skip
def test_errors_of_a_cluster_end_it_with_one_line(monkeypatch, error, line):
    one_line_end(monkeypatch)
    workers = Workers(tf.distribute.get_strategy())
    with pytest.raises(type(error)), workers.ending_together():
        raise error
    workers.alone = False
    with pytest.raises(SystemExit, match=f"^{line}"), workers.ending_together():
        raise error
    with pytest.raises(tf.errors.NotFoundError), workers.ending_together():
        raise tf.errors.NotFoundError(None, None, "a mistake of ours is shown as it is")


def test_workers_on_several_replicas_agree():
    """The sums behind the agreement, on two logical CPUs in the place of two workers."""
    workers = Workers(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    assert workers.any(True) and not workers.any(False) and workers.same(3)
    workers.alone = False
    assert workers.any(True) and not workers.any(False)
    assert workers.same(1_000_000, 2**32 - 1)
    workers.replicas = 3  # as if one of three had nothing
    assert not workers.same(5, 0)
