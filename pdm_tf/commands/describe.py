"""--mode=describe: the network that training would make, and its config, without any compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from pdm_tf.commands import train
from pdm_tf.config.presets import is_named
from pdm_tf.config.words import get, setting, word
from pdm_tf.data import DatasetInfo, find_dataset
from pdm_tf.describe import describe_network
from pdm_tf.errors import UserError


@dataclass(frozen=True)
class Options(train.Options):
    """Print what training would make: shapes, parameters and FLOPs, and with --full the whole config."""

    full: bool = setting(False, "Print the whole config, too.")


def run(options: Options) -> None:
    """Prints the network, and with `full` the fields that count for it, as --set takes them."""
    plan = train.plan(options, dataset_at_hand(options))
    print(plan.choices + describe_network(plan.config))
    if options.full:
        for key in plan.config.used_keys:
            print(f"{key}={word(get(plan.config, key))}")


def dataset_at_hand(options: Options) -> Optional[DatasetInfo]:
    """The data set's description; None for a named one that is not there."""
    try:
        return find_dataset(options.dataset_name, options.data_dir)
    except UserError:
        if not is_named(options.dataset_name):
            raise
        return None
