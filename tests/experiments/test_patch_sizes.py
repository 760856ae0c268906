"""The comparison of patch sizes: what its models share, and its sums."""

import argparse
import dataclasses
import json

import pytest

from experiments.patch_sizes import (
    EXPERTS,
    LARGE,
    ONE,
    SMALL,
    config_of,
    folders_of,
    models_of,
    rows_of,
    table,
)
from pdm_tf.config.presets import network_settings, preset, sized_preset
from pdm_tf.data import find_dataset
from pdm_tf.denoiser import build_network
from pdm_tf.describe import forward_flops

GIVEN = {"training.steps": 500, "network.base_channels": 32, "network.head_channels": 32}


@pytest.fixture(scope="module", params=["unet", "vit"])
def models(request):
    config = preset("emoji64").replace(GIVEN)
    config = config.replace({**network_settings(request.param, config), **GIVEN})
    return models_of(config, 396, GIVEN)


def test_a_named_data_set_has_its_own_network_and_other_data_one_that_fits():
    for dataset in ("avatars64", "emoji64"):
        info = find_dataset(dataset, "")
        known = {"data.label_names": info.label_names, "data.sha256": info.sha256}
        arguments = argparse.Namespace(dataset=dataset, network="unet")
        named = config_of(arguments, info, GIVEN)
        assert named == preset(dataset).replace({**GIVEN, **known})
        arguments.dataset = f"folder:{info.directory}"
        own = dataclasses.replace(named.data, dataset=arguments.dataset)
        assert config_of(arguments, info, GIVEN) == sized_preset("tiny", own, GIVEN)


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
    # The weights are averaged over as much of each run.
    assert all(c.training.steps / c.training.ema_every >= 30 for runs in models.values() for c in runs)


@pytest.mark.slow
def test_the_large_size_of_one_network_costs_what_large_patches_everywhere_do(models):
    (large,), (one,) = models[LARGE], models[ONE]
    flops = forward_flops(build_network(one), large=True)
    # But for the shortcuts and two convolutions on the way into a U-Net's second level.
    assert flops == pytest.approx(forward_flops(build_network(large)), rel=0.2)


def test_rows_are_means_errors_and_times_beside_small_patches(tmp_path):
    measured = {"0": {"FD": 10.0, "bits_per_dim": 4.0}, "1": {"FD": 14.0, "bits_per_dim": 4.0}}
    slow, fast = [2.0, 4.0, 3.0], [1.0, 2.0, 30.0]
    results = json.loads(json.dumps({
        "measured": {SMALL: measured, ONE: {"0": measured["0"]}},
        "sampling_seconds": {SMALL: slow, ONE: fast}, "training_seconds": {SMALL: slow, ONE: slow},
        "costs": {
            SMALL: {"parameters": 1000, "sampling_flops": 50},
            ONE: {"parameters": 1100, "sampling_flops": 30},
        },
    }))  # fmt: skip
    first, second = rows_of(results)
    assert (first["FD"], first["FD error"], first["seeds"]) == (12.0, pytest.approx(2.0), 2)
    assert (second["FD"], second["FD error"]) == (10.0, None)
    # Turn by turn: what slows one turn down does not tell.
    assert (second["sampling time"], second["sampling images/s"]) == (0.5, 0.5)
    assert second["sampling flops"] == 0.6
    lines = table([first, second], ["FD"]).splitlines()
    assert lines[2] == f"| {SMALL} | 1,000 | 12 ± 2 | 4 ± 0 | 0.333 | 0.333 | 1.00 | 1.00 |"
    assert lines[3] == f"| {ONE} | 1,100 | 10 | 4 | 0.333 | 0.5 | 0.50 | 0.60 |"


def test_each_run_has_a_folder_of_its_own(tmp_path, models):
    folders = [
        folder for name, runs in models.items() for seed in (0, 1)
        for folder in folders_of(tmp_path, name, seed, len(runs))
    ]  # fmt: skip
    assert len(set(folders)) == 10
