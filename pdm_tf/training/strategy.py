"""Where a run computes: one device, several, several machines, or a TPU."""

from __future__ import annotations

import os

import tensorflow as tf
from absl import logging

from flags.errors import UserError


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of `--strategy`.

    Args:
      name: "cpu", "mirrored" (all GPUs of this machine), "multi_worker" (by TF_CONFIG), "tpu", or "auto": a
        TPU if TPU_NAME is set, workers if TF_CONFIG is set, all GPUs if there are any, else the CPU.
    Raises:
      UserError: there is no such device, or the cluster is not described.
    """
    if name == "auto":
        name = _choose()
        logging.info("--strategy=auto: %s", name)
    if name == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return tf.distribute.get_strategy()
    if name == "mirrored":
        if not tf.config.list_physical_devices("GPU"):
            raise UserError(
                "--strategy=mirrored: this machine has no GPU that TensorFlow sees; use --strategy=cpu"
            )
        return tf.distribute.MirroredStrategy()
    if name == "multi_worker":
        if not os.environ.get("TF_CONFIG"):
            raise UserError(
                "--strategy=multi_worker: set TF_CONFIG to the cluster's JSON on every worker first"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    return _tpu()


def _choose() -> str:
    if os.environ.get("TPU_NAME"):
        return "tpu"
    if os.environ.get("TF_CONFIG"):
        return "multi_worker"
    return "mirrored" if tf.config.list_physical_devices("GPU") else "cpu"


def _tpu() -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver()
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--strategy=tpu: no TPU could be reached ({reason}); set TPU_NAME, or use --strategy=cpu"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy computes on TPUs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)
