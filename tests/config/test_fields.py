"""The config: JSON round trip, settings from words, and what is refused with which advice."""

import math

import pytest

from pdm_tf.config.fields import Config, changes, parse_settings, validate
from pdm_tf.config.presets import network_settings, preset
from pdm_tf.config.words import differences, get, leaves
from pdm_tf.errors import UserError

SHIPPED = [preset("avatars64"), preset("emoji64")]
PAPERS = [
    *(preset("lsun_church", p) for p in (2, 4, 8)),
    *(preset("imagenet256", split=s) for s in ("low", "high")),
    preset("ffhq1024"),
]
PRESETS = [*SHIPPED, *(preset(f"avatars{side}") for side in (32, 256, 1024)), *PAPERS]


@pytest.mark.parametrize("config", PRESETS, ids=lambda c: c.data.dataset)
def test_presets_are_valid_and_survive_json(config):
    assert Config.from_json(validate(config).to_json()) == config


def with_network(network, config):
    return validate(config.replace(network_settings(network, config)))


@pytest.mark.parametrize("config", PRESETS, ids=lambda c: c.data.dataset)
def test_each_data_set_has_a_vit_of_its_own(config):
    vit = with_network("vit", config)
    assert with_network("unet", config) == config and vit.network.kind == "vit"
    assert vit.conditional == config.conditional and vit.data == config.data
    # The law's mean log-SNR is -1.6 up to 256 pixels, shifted above; or that of 64 pixels, and 0.77 more.
    below = min(0.0, math.log(max(config.data.image_shape) / 256))
    shifted = config.diffusion.schedule.startswith("shifted")
    mean = math.log(64 / 256) + 0.39 if shifted else below
    assert vit.diffusion.t_mean == pytest.approx(-0.8 + mean, abs=5e-3)
    assert vit.diffusion.schedule == ("shifted_linear" if shifted else config.diffusion.schedule)
    changed = {key.split(".")[0] for key in differences(config, vit)}
    assert changed == {"network", "diffusion", "optimizer"}  # what it sees, and for how long, is the same


def test_appendix_d_is_its_first_configuration_and_of_lsun_church_alone():
    config = with_network("vit_appendix_d", preset("lsun_church"))
    network, optimizer = config.network, config.optimizer
    assert (network.depth, network.patch_size, config.training.batch_size) == (11, 8, 128)
    assert (network.norm, network.norm_place, network.t_conditioning) == ("layer", "after", "everywhere")
    assert network.input_injections == (4, 8, 11) and network.residual_scaling == "none"
    assert (optimizer.learning_rate, optimizer.beta_2, optimizer.warmup_steps) == (1e-4, 0.95, 10_000)
    assert (config.diffusion.prediction, config.diffusion.loss_weighting) == ("x", "sqrt_snr")
    with pytest.raises(UserError, match="is for lsun_church, and the data set is emoji64"):
        network_settings("vit_appendix_d", preset("emoji64"))


def test_the_local_expert_does_little_noise_of_the_process_of_the_vit_that_does_the_rest():
    local, vit = (with_network(name, preset("avatars256")) for name in ("local", "vit"))
    assert local.conditional and local.network.local and local.data.crop == 128
    assert with_network("local", preset("avatars1024")).data.crop == 256
    assert with_network("local", preset("avatars32")).data.crop == 32  # the image
    shared = [key for key, leaf in leaves(Config).items() if leaf.rule.shared]
    assert [get(local, key) for key in shared] == [get(vit, key) for key in shared]
    assert local.diffusion.t_stop < vit.diffusion.t_stop


def test_presets_are_those_of_the_tables():
    low, high = (preset("imagenet256", split=s) for s in ("low", "high"))
    assert (low.diffusion.t_start, low.diffusion.t_stop) == (0, 396)
    assert (high.diffusion.t_start, high.diffusion.t_stop) == (396, 1000)
    assert (low.optimizer.learning_rate, high.optimizer.learning_rate) == (1e-4, 5e-5)
    assert (high.optimizer.beta_2, high.optimizer.warmup_steps) == (0.999, 10_000)
    ffhq = preset("ffhq1024")
    assert ffhq.diffusion.beta_end == 0.025 and ffhq.training.steps == 780_000
    assert [preset("lsun_church", p).training.batch_size for p in (2, 4, 8)] == [128, 256, 512]
    assert preset("lsun_church", 8).network.channel_multipliers == (1, 1.5, 2)
    for config in PAPERS:
        dataset, sampling = config.data.dataset, config.sampling
        assert (sampling.sampler, sampling.variance) == ("ancestral", "learned")
        assert sampling.steps == ((1000,) if dataset == "ffhq1024" else (250,))
        assert sampling.guidance == (1.5 if dataset == "imagenet256" else 1.0)
        assert config.training.ema_decay == 0.99 and config.training.ema_every == 100
        assert config.training.ema_lengths == ()  # the paper has none
        assert config.network.attention_resolutions == (16, 8) and config.diffusion.label_dropout == 0.1


REFUSED = [
    ("optimizer.lr=1", "there is no setting 'optimizer.lr'; did you mean"),
    ("nonsense", "write --set=key=value"),
    ("training.steps=many", "--set=training.steps=many: use a whole number"),
    ("data.image_shape=64,64", "use 3 values"),
]


@pytest.mark.parametrize("assignment, message", REFUSED)
def test_settings_that_are_refused(assignment, message):
    with pytest.raises(UserError, match=message):
        parse_settings([assignment])


IMPOSSIBLE = [
    ("unet", "network.patch_size=3", r"image height 64 does not divide by .* = 12: resize to 60"),
    ("unet", "network.head_channels=48", "must divide by network.head_channels=48"),
    ("vit", "network.input_injections=8", "there are network.depth=7"),
    ("unet", "training.steps_per_execution=7", "is not a multiple of training.steps_per_execution=7: use"),
    ("unet", "data.num_classes=0", "needs labels, and emoji64 has none"),
    ("local", "data.crop=64 network.refiner_channels=32", "a refiner normalizes over the whole image"),
    ("unet", "data.augmentation=0.1 data.horizontal_flip=true", r"use data\.horizontal_flip=false$"),
]


@pytest.mark.parametrize("network, assignments, message", IMPOSSIBLE)
def test_values_that_cannot_work(network, assignments, message):
    config = with_network(network, preset("emoji64"))
    with pytest.raises(UserError, match=message) as error:
        validate(config.replace(parse_settings(assignments.split())))
    assert "\n" not in str(error.value)


def test_every_field_says_all_of_itself():
    """A field added without a thought for its range shows here."""
    for key, leaf in leaves(Config).items():
        assert leaf.rule.help.endswith("."), key
        ranged = leaf.rule.choices or leaf.rule.problem((-1e9,))
        assert ranged or leaf.kind not in (int, float) or key == "sampling.guidance", key
        if not isinstance(leaf.default, tuple):
            assert not leaf.rule.problem(leaf.default), key


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"nets": {}}', "unknown key nets"),
        ('{"seed": "0"}', "use a whole number"),
    ],
)
def test_damaged_config_files_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        Config.from_json(text)


@pytest.mark.parametrize(
    "old, new, same",
    [
        (("folder:d", "1"), ("folder:/elsewhere/d/", "1"), True),
        (("folder:d", "1"), ("folder:d", "2"), False),
    ],
)
def test_data_are_what_they_are_and_not_how_their_place_is_written(old, new, same):
    old, new = (
        Config().replace({"data.dataset": name, "data.sha256": sha256}) for name, sha256 in (old, new)
    )
    assert set(changes(old, new)) == set(changes(new, old)) == (set() if same else {"data.dataset"})
    assert set(changes(old, new.replace({"seed": 1}))) == {"seed", *changes(old, new)}
