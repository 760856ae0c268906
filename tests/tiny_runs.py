"""Networks small enough for tests, with weights that are all alive, and run folders that hold them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pdm_tf.config.fields import Config, DataConfig, DiffusionConfig, NetworkConfig, TrainingConfig, validate
from pdm_tf.denoiser import NetworkDenoiser, build_denoiser, build_network
from pdm_tf.run import RunFolder
from pdm_tf.weights import assign_arrays, variable_names, write_arrays

CLASSES = ("cat", "dog", "owl")


def tiny_config(**settings) -> Config:
    """A class-conditional network for 16 x 16 images; `settings` are dotted keys with __ for the dots."""
    config = Config(
        data=DataConfig("emoji64", (16, 16, 3), num_classes=len(CLASSES), label_names=CLASSES),
        network=NetworkConfig(
            patch_size=4,
            base_channels=32,
            channel_multipliers=(1,),
            blocks_per_level=1,
            attention_resolutions=(),
            head_channels=32,
            class_conditioning="gate",
        ),
        diffusion=DiffusionConfig(),
        training=TrainingConfig(batch_size=4, steps=1),
    )
    return validate(config.replace({key.replace("__", "."): value for key, value in settings.items()}))


# Settings of `tiny_config` for a Vision Transformer that is told labels in every way that it can be.
VIT = {
    "network__kind": "vit",
    "network__depth": 2,
    "network__bottleneck": 16,
    "network__class_conditioning": "tokens",
    "network__class_tokens": 2,
    "network__class_tokens_from": 2,
}


def arrays_of(network) -> dict[str, np.ndarray]:
    """Its weights by name."""
    variables = network.trainable_variables
    return {name: variable.numpy() for name, variable in zip(variable_names(variables), variables)}


def random_arrays(network, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by name. No kernel is zero, as those of an untrained network's outputs are."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for name, variable in zip(variable_names(network.trainable_variables), network.trainable_variables):
        fan_in = max(int(np.prod(variable.shape[:-1])), 1)
        scale = 1.0 / np.sqrt(fan_in) if len(variable.shape) > 1 else 0.1
        arrays[name] = scale * generator.standard_normal(variable.shape).astype(np.float32)
    return arrays


def randomized(network, seed: int = 0):
    """Gives a network, or a layer, weights that are all alive."""
    assign_arrays(network.trainable_variables, random_arrays(network, seed), "random_arrays")
    return network


@functools.cache
def tiny_network(config: Config, seed: int):
    """Tests share the networks that they do not change: making one takes seconds."""
    return randomized(build_network(config), seed)


def tiny_denoiser(config: Config | None = None, seed: int = 0) -> NetworkDenoiser:
    config = config or tiny_config()
    return build_denoiser(config.diffusion, tiny_network(_of_network(config), seed))


def _of_network(config: Config) -> Config:
    """Nothing but what makes the network."""
    return dataclasses.replace(Config(), data=config.data, network=config.network)


def write_snapshots(run_dir: Path, steps: Sequence[int] = range(50, 301, 50)) -> RunFolder:
    """Gives a run of `write_run` snapshots of two lengths' averages, of wild weights."""
    run = RunFolder(run_dir)
    config = run.config().replace({"training.ema_lengths": (0.05, 0.1), "training.ema_every": 1})
    run.write_config(config)
    network = tiny_network(_of_network(config), 0)
    for step in steps:
        for number, length in enumerate(config.training.ema_lengths):
            write_arrays(run.snapshot(length, step), random_arrays(network, step + number))
    return run


def write_run(run_dir: Path, config: Config | None = None, seed: int = 0) -> Path:
    """A run folder as training leaves it: config.json and averaged weights."""
    config = config or tiny_config()
    run = RunFolder(run_dir)
    run.write_config(config)
    write_arrays(run.weights(1), random_arrays(tiny_network(_of_network(config), 0), seed))
    return run_dir
