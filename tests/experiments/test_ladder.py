"""The ladder: one change a rung, from the paper's first configuration to the stable preset, and its sums."""

import numpy as np
import pytest

from experiments.ladder import RUNGS, config_of, spikes
from pdm_tf.config.presets import network_settings, preset
from pdm_tf.config.words import differences, get

CONFIGS = [config_of(rung, 0.01, 16, 64) for rung in range(1, len(RUNGS) + 1)]


def test_each_rung_is_the_one_above_it_with_its_own_change():
    for above, config, (_, changes) in zip(CONFIGS, CONFIGS[1:], RUNGS[1:]):
        assert set(differences(above, config)) == set(changes)


@pytest.mark.parametrize(("rung", "network", "dataset"), [
    (0, "vit_appendix_d", "lsun_church"), (-1, "vit", "emoji64")
])  # fmt: skip
def test_the_ends_are_the_presets_but_for_their_size(rung, network, dataset):
    settings = network_settings(network, preset(dataset))
    size = {
        "patch_size",
        "base_channels",
        "head_channels",
        "depth",
        "class_conditioning",
        "class_tokens_from",
    }
    size |= {"t_mean"}  # which follows the images' side
    for key, value in settings.items():
        if key.startswith(("network.", "diffusion.")) and key.split(".")[1] not in size:
            assert get(CONFIGS[rung], key) == value, key


def test_spikes_are_counted_against_the_steps_before_them():
    steady = [1.0] * 60
    assert spikes(steady) == 0
    assert spikes([*steady, 11.0, 1.0, 9.0, 300.0]) == 2
    assert spikes([*steady, float("nan"), float("inf"), 1.0]) == 2
    assert spikes(list(np.geomspace(1, 1e4, 600))) == 0  # slow growth is none
