"""Recipes at equal minutes: what is run, and what is shown of it."""

import argparse
import json

import numpy as np
import pytest

from experiments.recipes import DISTANCE, results_of, table
from pdm_tf.run import RunFolder
from pdm_tf.weights import write_arrays


class FakeMain:
    """Leaves what main.py would; the third command is stopped with its run half done."""

    def __init__(self):
        self.commands = []

    def __call__(self, arguments):
        self.commands.append(list(arguments))
        flags = dict(argument[2:].split("=", 1) for argument in arguments if "=" in argument)
        folder = RunFolder(flags["run_dir"])
        if flags["mode"] == "train":
            steps = 10 + int(flags["seed"]) * 20
            if "_20min_" in folder.path.name:
                assert [path.name for path in folder.path.iterdir()] == ["ema"]  # of the shorter run
                assert [path.name for path in folder.weights(0).parent.iterdir()] == [
                    folder.weights(steps).name
                ]
                steps *= 4
            else:
                assert not folder.path.exists()
            write_arrays(folder.weights(steps), {"a": np.zeros(1)})
        else:
            folder.evaluation.mkdir()
            metrics = {DISTANCE: {"value": 300.0 + 2 * int(flags["seed"]), "error": 1.0}}
            held_out = {"metrics": {DISTANCE: {"value": 100.0, "error": 1.0}}}
            rows = {"results": [{"digest": "of its weights", "metrics": metrics}, held_out]}
            (folder.evaluation / "evaluation.json").write_text(json.dumps(rows))
        if len(self.commands) == 3:
            raise KeyboardInterrupt("SIGTERM")


def test_what_was_stopped_begins_again_and_the_rest_is_done_once(tmp_path):
    options = argparse.Namespace(
        datasets=["folder:data/icons"],
        minutes=[20.0, 5.0],
        recipes=["default", "random weights"],
        seeds=2,
        num_samples=8,
        out=tmp_path,
    )
    fake = FakeMain()
    with pytest.raises(KeyboardInterrupt):
        results_of(options, fake)
    results = results_of(options, fake)
    both = ["--mode=train", "--mode=evaluate"]
    assert [command[0] for command in fake.commands] == [*both, "--mode=train", *both * 7]
    trained = [command for command in fake.commands if command[0] == "--mode=train"]
    assert all("--set=training.minutes=5" in command for command in trained[:5])
    assert all("--set=training.minutes=15" in command for command in trained[5:])
    assert sum("--warm_start=" in command for command in fake.commands) == 4
    assert len({(c[0], c[2]) for c in fake.commands}) == 16
    before = len(fake.commands)
    assert results_of(options, fake) == results and len(fake.commands) == before
    assert "| folder:data/icons | 5 | 301 ± 1.4 (20 steps) | 301 ± 1.4 (20 steps) |" in table(results)
    assert "| folder:data/icons | 20 | 301 ± 1.4 (80 steps) | 301 ± 1.4 (80 steps) |" in table(results)
