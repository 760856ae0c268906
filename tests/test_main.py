"""The command line as a user types it, in processes of its own."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pdm_tf.config.fields import Config, parse_settings
from pdm_tf.run import RunFolder
from tests.data.fixtures import encode, example, write_shards
from tests.in_process import run_mode


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "main.py", *arguments], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_a_refusal_is_one_line_and_status_2(repository):
    done = run("--mode=train", "--steps=1000", cwd=repository)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --steps is a flag of --mode=sample|evaluate|analyze|export and not of --mode=train; did you "
        "mean --train_steps?\n"
    )


def test_describe_says_what_matters_and_with_full_the_config(capsys):
    asked = {"mode": "describe", "set": "network.dropout=0.1"}
    status, short = run_mode(capsys, **asked)
    assert status == 0 and "trainable parameters: 5,792,672" in short and "{" not in short
    status, full = run_mode(capsys, **asked, full=True)
    assert status == 0 and full.startswith(short)
    config = Config().replace(parse_settings(full[len(short) :].splitlines()))
    assert config.network.dropout == 0.1 and "network.depth" not in full
    # What training decides when it starts is decided here too.
    assert config.training.precision != "auto" and len(config.data.label_names) == 9


@pytest.mark.slow
def test_train_then_sample_and_the_same_seed_gives_the_same_bytes(repository, tmp_path):
    tiny = ["--set=network.channel_multipliers=1", "--set=network.attention_resolutions=", "--batch_size=8"]
    asked = [*tiny, "--train_steps=10", "--set=training.sample_images=4", "--set=sampling.steps=4"]
    made = run("--mode=train", f"--run_dir={tmp_path}", *asked, cwd=repository)
    assert made.returncode == 0, made.stderr
    assert made.stdout.endswith(
        f"run folder: {tmp_path}\nloss curve: {tmp_path}/logs/loss.png\n"
        f"samples: {tmp_path}/previews/step_00000010.png\n"
    )
    described = run("--mode=describe", "--full", f"--run_dir={tmp_path}", *asked, cwd=repository)
    settings = [line for line in described.stdout.splitlines() if re.match(r"[a-z_.0-9]+=", line)]
    assert Config().replace(parse_settings(settings)) == RunFolder(tmp_path).config()
    assert RunFolder(tmp_path).given().settings["training.batch_size"] == 8
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


@pytest.mark.slow
def test_a_short_run_on_one_s_own_pictures_draws_their_colour(tmp_path, capsys):
    """64 red ones, and 300 steps: the rate has warmed up, and the averages are not the first weights."""
    red = np.random.default_rng(0).integers(-8, 9, (64, 8, 8, 3)) + np.array([222, 31, 31])
    write_shards(
        tmp_path / "red", [[example(encode(image.astype(np.uint8))) for image in red]], shape=(8, 8, 3)
    )
    small = ["network.base_channels=32", "training.sample_images=16"]
    status, said = run_mode(
        capsys, mode="train", dataset=f"folder:{tmp_path}/red", run_dir=f"{tmp_path}/run", train_steps=300,
        batch_size=8, set=small,
    )  # fmt: skip
    assert status == 0, said
    lines = said.splitlines()
    assert lines[:2] == [
        "running on the CPU",
        "size: tiny (there is no accelerator; --size=tiny|small|base chooses)",
    ]
    assert "64 images, 8 x 8 x 3, no classes" in lines[2]
    assert lines[3].startswith("network: ViT, 8 x 8 patches")
    assert any(line.startswith("a step takes 0.") and "all 300 take" in line for line in lines)
    drawn = np.asarray(Image.open(tmp_path / "run/previews/step_00000300.png")).reshape(-1, 3)
    colour = np.median(drawn[(drawn < 255).any(axis=1)], axis=0)
    np.testing.assert_allclose(colour, (222, 31, 31), atol=25)
