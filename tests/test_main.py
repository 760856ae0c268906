"""The command line as a user types it, in processes of its own."""

import json
import subprocess
import sys

import pytest


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_describe_prints_config_shapes_parameters_and_flops(repository):
    done = run("--mode=describe", "--set=network.dropout=0.1", cwd=repository)
    assert done.returncode == 0
    text, _, rest = done.stdout.partition("\n}\n")
    config = json.loads(text + "}")
    assert config["network"]["dropout"] == 0.1
    # What training decides when it starts is decided here too.
    assert config["training"]["precision"] == "float32" and len(config["data"]["label_names"]) == 9
    assert "trainable parameters: 5,792,672" in rest and "forward FLOPs per image: 1," in rest
    assert "Addons" not in done.stderr


REFUSED = [
    (["--mode=trian"], "value should be one of"),
    (["--nonsense=1"], "Unknown command line flag 'nonsense'"),
    (["train"], "unexpected argument 'train'"),
    (["--mode=describe", "--dataset=cifar"], "use emoji64, lsun_church"),
    (["--mode=describe", "--patch_size=5"], "does not divide by patch_size"),
    (["--mode=describe", "--set=training.step=1"], "did you mean training.steps"),
    (["--mode=train", "--dataset=ffhq1024", "--data_dir=/nowhere"], "python -m data_tools.ffhq --input"),
    (["--mode=train", "--dataset=folder:/nowhere"], "python -m data_tools.image_folder --input"),
    (["--mode=train", "--steps=1000"], "in --mode=train use --train_steps"),
    (["--mode=sample", "--batch_size=64"], "in --mode=sample use --sample_batch_size"),
    (["--guidance=2"], "in --mode=train use --set=sampling.guidance=..."),
    (["--mode=sample", "--schedule=logsnr"], "Unknown command line flag 'schedule'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_work_is_refused_in_one_line_before_any_compute(repository, arguments, message):
    done = run(*arguments, cwd=repository)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.slow
def test_train_then_sample_and_the_same_seed_gives_the_same_bytes(repository, tmp_path):
    tiny = ["--set=network.channel_multipliers=1", "--set=network.attention_resolutions=", "--batch_size=8"]
    made = run(
        "--mode=train", f"--run_dir={tmp_path}", "--train_steps=10", "--set=training.sample_images=4",
        "--set=sampling.steps=4", *tiny, cwd=repository,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.endswith(
        f"run folder: {tmp_path}\nloss curve: {tmp_path}/logs/loss.png\n"
        f"samples: {tmp_path}/previews/step_00000010.png\n"
    )
    described = run(
        "--mode=describe", f"--run_dir={tmp_path}", "--train_steps=10", "--set=training.sample_images=4",
        "--set=sampling.steps=4", *tiny, cwd=repository,
    )  # fmt: skip
    assert described.stdout.startswith((tmp_path / "config.json").read_text())
    other = run("--mode=describe", f"--run_dir={tmp_path}", "--seed=1", *tiny, cwd=repository)
    assert other.returncode == 2 and "holds a run with other settings: seed (0 there, 1 now)" in other.stderr
    files = []
    for seed in (1, 1, 2):
        out = tmp_path / f"out{len(files)}"
        done = run(
            "--mode=sample", f"--run_dir={tmp_path}", f"--seed={seed}", f"--out={out}", "--num_samples=4",
            "--sampler=ancestral", "--spacing=even", "--steps=5", cwd=repository,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        files.append((out / "samples.npz").read_bytes())
    assert files[0] == files[1] != files[2]
