"""Batches for one network of two patch sizes."""

import pytest

from pdm_tf.errors import UserError
from pdm_tf.training import loop
from tests.tiny_runs import VIT, tiny_config


def test_replicas_that_would_get_one_image_each_are_refused():
    config = tiny_config(**VIT, network__patch_switch_t=396, training__batch_size=4)
    loop.check_batch(config, 2)
    with pytest.raises(UserError, match="need two: use 8"):
        loop.check_batch(config, 4)
    loop.check_batch(config.replace({"network.patch_switch_t": 0}), 4)
