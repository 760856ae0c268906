"""What the config lets a user choose is what the tables hold: a name in one alone fails, or is hidden."""

import inspect

import pytest

from pdm_tf.config.fields import Config, SamplingConfig
from pdm_tf.config.words import leaves, options_of
from pdm_tf.diffusion.losses import WEIGHTINGS
from pdm_tf.diffusion.process import VARIANCES
from pdm_tf.diffusion.schedules import SCHEDULES
from pdm_tf.diffusion.timesteps import T_DISTRIBUTIONS
from pdm_tf.networks.patched import NETWORKS
from pdm_tf.sampling.sampler import SAMPLERS

RULES = {key: leaf.rule for key, leaf in leaves(Config).items()}


@pytest.mark.parametrize(
    "key, table",
    [
        ("network.kind", NETWORKS),
        ("diffusion.schedule", SCHEDULES),
        ("diffusion.loss_weighting", WEIGHTINGS),
        ("diffusion.t_distribution", T_DISTRIBUTIONS),
        ("sampling.sampler", SAMPLERS),
        ("sampling.variance", VARIANCES),
    ],
)
def test_the_choices_are_the_rows_of_the_table(key, table):
    assert RULES[key].choices == tuple(table)


def test_options_are_of_something_that_there_is():
    for key, rule in RULES.items():
        known = {"sampling": SAMPLERS, "network": NETWORKS, "distillation": ["student"]}
        assert set(rule.of) <= set(known.get(key.split(".")[0], ())), key


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_takes_the_options_that_are_of_it_with_the_same_defaults(name):
    parameters = inspect.signature(SAMPLERS[name]).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert own == options_of(SamplingConfig(), name)
