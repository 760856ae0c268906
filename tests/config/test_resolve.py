"""The config that a run trains with: what was given, what follows from it, what a run that goes on keeps."""

import typing

import pytest

from pdm_tf.config.fields import Config, parse_settings
from pdm_tf.config.presets import PAPERS, SHIPPED
from pdm_tf.config.resolve import Given, refuse_other_settings, resolve
from pdm_tf.config.words import differences, get, leaves
from pdm_tf.errors import UserError
from pdm_tf.run import PRETRAINED, RunFolder


class Info:
    """A data set of labelled images."""

    sha256: str = ""
    num_classes = 2
    label_names = ("cat", "dog")
    num_examples: typing.ClassVar = {"train": 100}

    def __init__(self, shape=(64, 64, 3)):
        self.image_shape = shape


OTHER = "folder:x"


def given(dataset="avatars64", *settings, **choices) -> Given:
    return Given(dataset, settings=parse_settings(settings), **choices)


def resolved(dataset="avatars64", *settings, size=None, network=None, **situation) -> Config:
    return resolve(given(dataset, *settings, size=size, network=network), Info(), **situation)


def going_on(first: Given, now: Given, **machine) -> Config:
    """The config of the second part of a run."""
    earlier = resolve(first, Info(), **machine)
    config = resolve(now, Info(), earlier=earlier, begun_with=first)
    refuse_other_settings(earlier, config, "runs/a")
    return config


@pytest.mark.parametrize("dataset, patch_size", [(OTHER, 1), (OTHER, 8), ("emoji64", 8), ("lsun_church", 16)])
def test_a_patch_size_that_is_given_is_the_network_s(dataset, patch_size):
    assert resolved(dataset, f"network.patch_size={patch_size}").network.patch_size == patch_size


def test_other_data_get_a_network_of_a_size():
    assert resolved(OTHER) == resolved(OTHER, size="tiny") != resolved(OTHER, size="small")
    assert resolved(OTHER, default_size="base") == resolved(OTHER, size="base")
    with pytest.raises(UserError, match="--size=tiny is for tfds: and folder: data, and not for avatars64"):
        resolved(size="tiny")
    with pytest.raises(UserError, match="--split=low is for imagenet256"):
        resolve(Given(OTHER, split="low"), Info())


def test_a_process_of_another_length_is_trained_whole_and_with_the_classes_of_its_data():
    longer = resolved("avatars64", "diffusion.num_timesteps=4000")
    assert longer.diffusion.t_stop == 4000 and longer.data.num_classes == Info.num_classes
    high = Given("imagenet256", split="high", settings=parse_settings(["diffusion.num_timesteps=4000"]))
    assert resolve(high, Info((256, 256, 3))).diffusion.t_stop == 4000
    earlier = resolved("avatars64", "data.num_classes=9")
    assert resolve(given(), Info(), earlier=earlier).data.num_classes == 9  # begun before that was so
    student = {"distillation.teacher": ("runs/a",)}
    assert resolve(Given("avatars64", settings=student), Info(), parent=earlier).data.num_classes == 9
    part = resolved("avatars64", "diffusion.num_timesteps=4000", "diffusion.t_stop=300")
    assert part.diffusion.t_stop == 300
    assert resolved("avatars64", "data.num_classes=5").data.num_classes == 5


def test_what_is_given_comes_last_and_the_rest_is_the_preset():
    config = resolved("avatars64", "seed=3", "training.batch_size=16", "diffusion.prediction=v")
    assert set(differences(config, resolved())) == {"seed", "training.batch_size", "diffusion.prediction"}
    vit = resolved("avatars64", "network.depth=3", "network.class_tokens_from=1", network="vit")
    assert vit.network.kind == "vit" and vit.network.depth == 3


def test_only_the_paper_s_experiments_are_not_fitted_to_their_length():
    for dataset in ("emoji64", "lsun_church"):
        warmup = resolved(dataset, "training.steps=100").optimizer.warmup_steps
        assert (warmup > 10) == (dataset in PAPERS)


@pytest.mark.parametrize(
    "setting, message",
    [
        ("network.patch_size=0", "above 0"),
        ("network.channel_multipliers=", "is empty"),
        ("optimizer.learning_rate=inf", "use a finite number"),
    ],
)
def test_values_that_nothing_can_be_derived_from_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        resolved(OTHER, setting, network="unet")


# --- a run that goes on ---------------------------------------------------------------------------


def test_a_run_goes_on_with_what_it_derived_on_another_machine_and_for_another_length():
    first = given(OTHER, "training.steps=300")
    began = resolve(first, Info(), default_size="base", precision="mixed_bfloat16")
    longer = going_on(
        first, given(OTHER, "training.steps=9000"), default_size="base", precision="mixed_bfloat16"
    )
    assert longer.training.steps == 9000
    asked = given(OTHER, "training.precision=auto")
    assert going_on(asked, asked, precision="mixed_bfloat16").training.precision == "mixed_bfloat16"
    changed = set(differences(began, longer))
    assert changed and all(leaves(Config)[key].rule.may_change for key in changed)


@pytest.mark.parametrize("network", ["vit", "local"])
@pytest.mark.parametrize("dataset", [OTHER, "emoji64"])
def test_a_network_goes_on_by_a_command_that_does_not_name_it(dataset, network):
    first = given(dataset, network=network)
    assert going_on(first, given(dataset)) == going_on(first, first) == resolve(first, Info())


@pytest.mark.parametrize(
    "first, now, changed",
    [
        (given("emoji64", network="vit"), given("emoji64", network="unet"), "network.kind"),
        (given("emoji64", "optimizer.beta_2=0.9"), given("emoji64"), r"beta_2 \(0.9 there, 0.99 now\)"),
        (given("emoji64", "seed=0"), given("emoji64", "seed=1"), r"seed \(0 there, 1 now\)"),
    ],
)
def test_what_contradicts_the_run_is_refused(first, now, changed):
    with pytest.raises(UserError, match=f"runs/a holds a run with other settings: .*{changed}") as error:
        going_on(first, now)
    assert "give the same ones to resume it" in str(error.value)


def test_a_run_keeps_its_size_on_a_machine_that_would_choose_another():
    begun = resolve(given(OTHER), Info(), "tiny")
    later = resolve(given(OTHER), Info(), "base", earlier=begun, begun_with=given(OTHER, size="tiny"))
    assert later == begun != resolve(given(OTHER), Info(), "base")


def test_a_run_whose_data_are_not_at_hand_has_their_names_and_digest(monkeypatch):
    monkeypatch.setattr(Info, "sha256", "0a")
    earlier = resolved("emoji64")
    config = resolve(given("emoji64"), None, earlier=earlier)
    refuse_other_settings(earlier, config, "runs/a")
    assert config == earlier and config.data.label_names == Info.label_names


def test_a_folder_without_given_json_goes_on_too():
    earlier = resolved("emoji64", "training.steps=100", "optimizer.beta_2=0.9", precision="mixed_bfloat16")
    config = resolve(given("emoji64"), Info(), earlier=earlier)
    refuse_other_settings(earlier, config, "runs/a")
    assert config.optimizer.beta_2 == 0.9 and config.training.steps == 30_000


def test_the_record_of_a_warm_start_stays():
    earlier = resolved("emoji64", "training.warm_start=a")
    for settings in ((), ("training.warm_start=a",)):
        assert resolve(given("emoji64", *settings), Info(), earlier=earlier).training.warm_start == "a"
    for other, word in (("b", "b"), ("", "nothing")):
        later = resolve(given("emoji64", f"training.warm_start={other}"), Info(), earlier=earlier)
        with pytest.raises(UserError, match=rf"training.warm_start \(a there, {word} now\)"):
            refuse_other_settings(earlier, later, "runs/a")


def test_what_was_given_is_kept_in_the_run_folder(tmp_path):
    run, first = RunFolder(tmp_path), given("emoji64", "network.channel_multipliers=1,2", network="vit")
    assert run.given() is None
    run.write_config(resolve(first, Info()), first)
    assert run.given().derives_as(first) and set(run.given().settings) == {"network.channel_multipliers"}
    run.given_file.write_text("{")
    with pytest.raises(UserError, match=r"given.json is damaged"):
        run.given()


def another(leaf, value):
    """A value that the leaf's rule allows, other than `value`; of a lone choice, one that is yet to come."""
    rule, parts = leaf.rule, typing.get_args(leaf.kind)
    if rule.choices == (value,):
        return f"another {value}"
    if rule.choices:
        others = rule.choices
    elif leaf.kind is bool:
        others = [not value]
    elif leaf.kind is str:
        others = [value + "x"]
    elif leaf.kind in (int, float):
        others = [value + 1, value - 1, (value + 1) / 2 if leaf.kind is float else value // 2]
    else:
        others = [(*value, parts[0](1)), value[:-1]] if Ellipsis in parts else [value[::-1]]
    return next(other for other in others if other != value and not rule.problem(other))


def test_a_run_goes_on_with_another_value_only_where_no_train_step_depends_on_it():
    config = resolved("avatars64", "training.ema_lengths=0.05,0.1")
    for key, leaf in leaves(Config).items():
        changed = config.replace({key: another(leaf, get(config, key))})
        assert Config.from_json(changed.to_json()) == changed
        if leaf.rule.may_change:
            refuse_other_settings(config, changed, "runs/a")
        else:
            with pytest.raises(UserError, match=rf"runs/a holds a run with other settings: {key} \("):
                refuse_other_settings(config, changed, "runs/a")


# --- a run that starts from another's weights -----------------------------------------------------


@pytest.mark.parametrize(("shape", "name"), [
    ((32, 32, 3), "avatars64"), ((48, 48, 3), "avatars64"), ((64, 64, 1), "avatars64"),
    ((128, 128, 3), "avatars64"), ((224, 224, 3), "avatars256"), ((256, 256, 3), "avatars256"),
])  # fmt: skip
def test_other_data_begin_with_weights_that_ship_where_their_network_is_theirs(shape, name):
    def start(*settings, **choices):
        return resolve(given(OTHER, *settings, **choices), Info(shape)).training.warm_start

    assert start() == start(size="tiny") == start("network.dropout=0.1") == name
    assert start("training.warm_start=") == start("network.depth=9") == start("diffusion.prediction=v") == ""
    assert start(size="small") == start(network="unet") == resolved().training.warm_start == ""
    assert resolve(given(OTHER), Info((64, 64, 4))).training.warm_start == ""


def test_many_images_are_not_scored_by_default():
    many = Info()
    many.num_examples = {"train": 1_000_000}
    scored = given(OTHER, "training.score_every=500")
    assert resolve(given(OTHER), many).training.score_every == 0 < resolved(OTHER).training.score_every
    assert resolve(scored, many).training.score_every == 500


@pytest.mark.parametrize("name", SHIPPED.values())
def test_the_network_of_the_weights_that_ship_is_the_preset_s(name):
    there = RunFolder(PRETRAINED / name).config()
    assert there.network == resolved(name, network="vit").network


def test_a_new_run_that_starts_from_another_s_weights_gets_its_network():
    parent = resolved(OTHER, "training.steps=300", "network.patch_size=4", size="small")
    child = resolved(OTHER, parent=parent)
    assert child.network == parent.network
    of_v = resolved(OTHER, parent=parent.replace({"diffusion.prediction": "v"}))
    assert of_v.diffusion.prediction == "v"
    assert child.optimizer == resolved(OTHER, network="unet").optimizer
    assert resolved(OTHER, size="base", parent=parent) == resolved(OTHER, size="base")
    assert resolved(parent=parent) == resolved()  # a data set with a network of its own


def test_labels_and_patches_of_other_images_are_not_the_parent_s():
    parent = resolved("avatars64", network="vit")
    assert parent.network.class_conditioning == "tokens" and parent.network.patch_size == 4
    larger = Info((128, 128, 1))
    larger.num_classes, larger.label_names = 0, ()
    child = resolve(given(OTHER, network="vit"), larger, parent=parent)
    assert child.network.class_conditioning == "none" and child.network.patch_size == 8
    assert child.network.depth == parent.network.depth and child.network.bottleneck == 32
