"""Two training steps of each real preset at its real resolution and network, on made-up archives."""

import json
import subprocess
import sys

import pytest

from tests.data.fixtures import make_preset_dataset


@pytest.mark.heavy
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("dataset", "choice"),
    [("lsun_church", "--patch_size=4"), ("imagenet256", "--split=high"), ("ffhq1024", "--prediction=v")],
)
def test_two_training_steps(repository, tmp_path, dataset, choice):
    make_preset_dataset(dataset, tmp_path)
    settings = {
        "training.log_every": 1, "training.eval_every": 1, "training.eval_batches": 1,
        "training.sample_images": 1, "sampling.steps": 1,
    }  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "main.py", "--mode=train", f"--dataset={dataset}", choice,
            f"--data_dir={tmp_path}", f"--run_dir={tmp_path}/run", "--batch_size=1", "--train_steps=2",
            *(f"--set={key}={value}" for key, value in settings.items()),
        ],
        cwd=repository, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(next(line for line in done.stdout.splitlines() if line.startswith("peak memory")))
    lines = [json.loads(line) for line in (tmp_path / "run/logs/metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "gradient_norm" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["skipped_steps"] == 0 and line["gradient_norm"] > 0 for line in steps)
