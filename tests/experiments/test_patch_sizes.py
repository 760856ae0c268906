"""The comparison of patch sizes: what its models share, its commands, and its sums."""

import argparse
import json

import numpy as np
import pytest

from experiments import patch_sizes
from experiments.patch_sizes import BITS, EXPERTS, LARGE, ONE, SMALL, PatchSizes, quiet, rows_of, table
from pdm_tf.config.fields import parse_settings, validate
from pdm_tf.config.presets import fitted_to_length, network_settings, preset
from pdm_tf.run import RunFolder
from pdm_tf.weights import write_arrays

GIVEN = {"training.steps": 500, "network.base_channels": 32, "network.head_channels": 32}


def small_config(network="unet"):
    config = preset("emoji64").replace(GIVEN)
    return config.replace({**network_settings(network, config), **GIVEN})


@pytest.fixture(scope="module", params=["unet", "vit"])
def models(request):
    """The config of each run, as main.py makes them of a preset and the table's settings."""
    config = small_config(request.param)
    return {
        name: [
            validate(
                fitted_to_length(
                    config.replace({**settings, **quiet(steps), "training.steps": steps}),
                    {**GIVEN, **settings, **quiet(steps)},
                )
            )
            for steps, settings in runs
        ]
        for name, runs in patch_sizes.table_of_runs(config, 396).items()
    }


def test_all_see_equally_many_images_of_each_interval(models):
    (small,), (large,), (low, high), (one,) = (models[name] for name in (SMALL, LARGE, EXPERTS, ONE))
    assert {config.training.batch_size for runs in models.values() for config in runs} == {32}
    assert small.training.steps == large.training.steps == one.training.steps == 500
    assert low.training.steps + high.training.steps == 500
    assert (low.diffusion.t_start, low.diffusion.t_stop) == (0, 396) == (0, high.diffusion.t_start)
    assert high.training.steps / 500 == pytest.approx(one.diffusion.large_share, abs=1e-3)
    if small.diffusion.t_distribution == "uniform":
        assert one.diffusion.large_share == 0.604
    assert one.network.patch_switch_t == 396 and not low.network.patch_switch_t
    # The weights are averaged over the same part of each run.
    assert all(c.training.steps / c.training.ema_every >= 30 for runs in models.values() for c in runs)


def test_runs_are_trained_and_evaluated_by_main_py_once(tmp_path, monkeypatch):
    commands = []

    def main_py(arguments):
        commands.append(arguments[0])
        flags = dict(argument[2:].split("=", 1) for argument in arguments if "=" in argument)
        parse_settings([word.removeprefix("--set=") for word in arguments if word.startswith("--set=")])
        if flags["mode"] == "train":
            folder = RunFolder(flags["run_dir"])
            folder.write_config(small_config())
            write_arrays(folder.weights(int(flags["train_steps"])), {"a": np.zeros(1)})
            return
        out = tmp_path / flags["out"]
        out.mkdir(parents=True, exist_ok=True)
        metrics = {"FD": {"value": 3.0, "error": None}}
        rows = [{"title": "held out", "metrics": {}}, {"title": "run", "digest": "0", "metrics": metrics}]
        (out / "evaluation.json").write_text(json.dumps({"results": rows}))
        (out / "likelihood.json").write_text(json.dumps({"bits_per_dim": {"value": 4.0, "error": 0.1}}))

    monkeypatch.setattr(patch_sizes.Model, "from_folders", lambda *folders: argparse.Namespace(runs=[]))
    for name in ("costs", "sampling_seconds", "training_seconds"):
        monkeypatch.setattr(patch_sizes, name, lambda *_: {"P": [1.0]})
    options = argparse.Namespace(
        out=tmp_path, dataset="emoji64", data_dir="data", network="unet", set=["network.base_channels=32"],
        boundary=396, steps=500, seeds=2, num_images=4, held_out=4, batch_size=2, turns=1,
    )  # fmt: skip
    measured = PatchSizes(options, main_py).results()["measured"]
    assert measured == {name: [{"FD": 3.0, BITS: 4.0}] * 2 for name in (SMALL, LARGE, EXPERTS, ONE)}
    assert commands.count("--mode=train") == 10 and commands.count("--mode=evaluate") == 16
    assert PatchSizes(options, main_py).results()["measured"] == measured and len(commands) == 26


def test_rows_are_means_errors_and_times_beside_small_patches():
    measured = [{"FD": 10.0, BITS: 4.0}, {"FD": 14.0, BITS: 4.0}]
    slow, fast = [2.0, 4.0, 3.0], [1.0, 2.0, 30.0]
    first, second = rows_of({
        "measured": {SMALL: measured, ONE: measured[:1]},
        "sampling_seconds": {SMALL: slow, ONE: fast},
        "training_seconds": {SMALL: slow, ONE: slow},
        "costs": {
            SMALL: {"parameters": 1000, "sampling_flops": 50},
            ONE: {"parameters": 1100, "sampling_flops": 30},
        },
    })  # fmt: skip
    assert first["metrics"]["FD"] == (12.0, pytest.approx(2.0), None)
    assert second["metrics"]["FD"] == (10.0, None, None)
    # Turn by turn: load on the machine in one turn changes no ratio.
    assert (second["sampling_time"], second["sampling_rate"]) == (0.5, 0.5)
    assert second["sampling_flops"] == 0.6
    lines = table([first, second]).splitlines()
    assert lines[2] == f"| {SMALL} | 1,000 | 12 ± 2 | 4 ± 0 | 0.333 | 0.333 | 1.00 | 1.00 |"
    assert lines[3] == f"| {ONE} | 1,100 | 10 | 4 | 0.333 | 0.5 | 0.50 | 0.60 |"
