"""Kills a training run at random moments, resumes it, and compares it with one that was left alone.

    python -m tests.training.kill_and_resume --kills=5 --replicas=1

One of the kills falls while a checkpoint is being written. The last lines are the hashes of parameters,
optimizer state and averages of both runs; the exit status is 0 if they are equal.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = {
    "training.steps": 80, "training.batch_size": 8, "training.log_every": 1, "training.eval_every": 20,
    "training.ema_every": 5, "training.checkpoint_every": 8, "training.sample_every": 1000,
    "training.sample_images": 2, "sampling.steps": 2, "network.base_channels": 32,
    "network.channel_multipliers": "1,2", "network.dropout": 0.1, "network.attention_resolutions": "",
    "network.head_channels": 32, "network.depth": 2, "network.class_tokens_from": 2,
    "optimizer.warmup_steps": 10, "data.horizontal_flip": "true", "training.ema_lengths": "0.05,0.1",
}  # fmt: skip


# A student of emoji64 in two phases of 40 steps, whose network is its teacher's.
STUDENT = {key: value for key, value in SETTINGS.items() if not key.startswith("network.")} | {
    "distillation.first": 8, "distillation.steps": 2, "distillation.phase_steps": 40,
    "optimizer.warmup_steps": 0,
}  # fmt: skip


def command(run_dir: Path, replicas: int, network: str = "unet") -> list:
    if network == "student":
        settings = [f"--set={key}={value}" for key, value in STUDENT.items()]
        return [sys.executable, "main.py", f"--run_dir={run_dir}", "--teacher=emoji64", *settings]
    settings = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    program = ["main.py"] if replicas == 1 else ["-m", "tests.training.kill_and_resume", "--train"]
    kind, two, _ = network.partition("+two_sizes")
    settings += ["--set=network.patch_switch_t=396", "--set=diffusion.large_share=0.25"] if two else []
    kind, crops, _ = kind.partition("+crops")
    settings += ["--set=network.local=true", "--set=data.crop=16"] if crops else []
    return [sys.executable, *program, f"--run_dir={run_dir}", f"--network={kind}", *settings]


def train_on_two_logical_cpus(arguments: list) -> None:
    """What main.py does, on a MirroredStrategy that its flags have no word for."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import main
    from pdm_tf import data
    from pdm_tf.commands.train import plan
    from pdm_tf.training import loop

    _, options = main.parse(arguments)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    info = data.find_dataset(options.dataset_name, "")
    config, run, *_ = plan(options, info)
    loop.train(config, run, info, strategy)


def last_step(run_dir: Path) -> int:
    try:
        lines = (run_dir / "logs/metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"]
    except (OSError, IndexError, ValueError):
        return 0


def wait_and_kill(process: subprocess.Popen, ready) -> bool:
    """Kills the process once `ready()`; False if it ended by itself first."""
    while process.poll() is None:
        if ready():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.0005)
    return False


def train_with_kills(
    run_dir: Path, replicas: int, kills: int, rng: random.Random, say, network: str = "unet"
) -> int:
    """Runs to the end through `kills` kills; returns how many fell while a checkpoint was being written."""
    steps, while_saving, start = SETTINGS["training.steps"], 0, 0
    for number in range(kills):
        process = subprocess.Popen(
            command(run_dir, replicas, network), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        if number == 1:
            moment = "while a checkpoint is written"
            killed = wait_and_kill(process, lambda: any(run_dir.glob("checkpoints/.*partial")))
            while_saving += killed
        else:
            # Spread over the run, so that each part gets somewhere and none reaches the end.
            target = min(
                steps - 2, start + rng.randint(1, max(1, 2 * (steps - start) // (kills - number + 1)))
            )
            moment = f"after step {target}"
            seen = last_step(run_dir) and (run_dir / "logs/metrics.jsonl").stat().st_size
            killed = wait_and_kill(
                process,
                lambda seen=seen, target=target: (
                    last_step(run_dir) >= target and (run_dir / "logs/metrics.jsonl").stat().st_size > seen
                ),
            )
        start = max([int(f.name[5:]) for f in run_dir.glob("checkpoints/step_*")], default=0)
        say(
            f"kill {number + 1} {moment}: {'killed' if killed else 'ended first'}; "
            f"newest checkpoint: step {start}"
        )
    subprocess.run(
        command(run_dir, replicas, network),
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return while_saving


def state_hashes(run_dir: Path) -> dict:
    """SHA-256 of the tensors of the last checkpoint, of the averages, and of those of some lengths."""
    import numpy as np
    import tensorflow as tf

    step = SETTINGS["training.steps"]
    reader = tf.train.load_checkpoint(str(run_dir / f"checkpoints/step_{step:08d}/state"))
    digests = {"checkpoint": hashlib.sha256(), "averages": hashlib.sha256(), "snapshots": hashlib.sha256()}
    for name in sorted(reader.get_variable_to_shape_map()):
        if "VARIABLE_VALUE" in name:
            digests["checkpoint"].update(name.encode() + reader.get_tensor(name).tobytes())
    with np.load(run_dir / f"ema/step_{step:08d}.npz") as averages:
        for name in sorted(averages):
            digests["averages"].update(name.encode() + averages[name].tobytes())
    for path in sorted([*run_dir.glob("ema/length_*/*.npz"), *run_dir.glob(f"checkpoints/*{step}/length_*")]):
        digests["snapshots"].update(str(path.relative_to(run_dir)).encode() + path.read_bytes())
    return {name: digest.hexdigest() for name, digest in digests.items()}


def compare(kills: int, replicas: int, seed: int, folder: Path, say=print, network: str = "unet") -> bool:
    """Whether the killed and the uninterrupted run end in the same bits, and a kill did fall into a save."""
    say(f"moments of the kills: --seed={seed}")
    subprocess.run(
        command(folder / "whole", replicas, network),
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while_saving = train_with_kills(folder / "killed", replicas, kills, random.Random(seed), say, network)
    whole, killed = state_hashes(folder / "whole"), state_hashes(folder / "killed")
    for name in whole:
        say(f"{name}: uninterrupted {whole[name][:16]}, killed {killed[name][:16]}")
    return whole == killed and while_saving > 0


if __name__ == "__main__":
    if "--train" in sys.argv:
        train_on_two_logical_cpus([a for a in sys.argv[1:] if a != "--train"])
        sys.exit()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--replicas", type=int, default=1, choices=(1, 2))
    parser.add_argument("--network", default="unet", choices=("unet", "vit"))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        equal = compare(options.kills, options.replicas, options.seed, Path(made), network=options.network)
    print("equal" if equal else "NOT equal (or no kill fell into a save)")
    sys.exit(not equal)
