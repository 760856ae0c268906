"""What the flags of --mode=sample become, and what they refuse."""

import pytest
from absl.testing import flagsaver

from flags import definitions
from flags.config import Config, DataConfig, NetworkConfig
from flags.definitions import FLAGS
from flags.errors import UserError

CONFIG = Config(
    data=DataConfig(num_classes=3, label_names=("Cat", "Dog & Wolf", "Owl")),
    network=NetworkConfig(class_conditioning="gate"),
)
UNCONDITIONAL = CONFIG.replace({"network.class_conditioning": "none"})


@pytest.fixture(autouse=True)
def parsed():
    if not FLAGS.is_parsed():
        FLAGS(["main.py"])


def settings(config=CONFIG, **flags):
    with flagsaver.flagsaver(**flags):
        return definitions.sampling_settings(config)


def refusal(function, *args, **flags):
    with pytest.raises(UserError) as caught, flagsaver.flagsaver(**flags):
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_only_what_was_asked_for_is_set():
    assert settings() == {
        "sampler": "ancestral", "sections": (250,), "spacing": "even", "guidance": 1.0, "jit_compile": False,
    }  # fmt: skip
    asked = {"sampler": "ddim", "eta": 0.0, "steps": "20", "schedule": "logsnr", "guidance": 2.0}
    assert settings(**asked) == {
        "sampler": "ddim", "sections": (20,), "spacing": "logsnr", "guidance": 2.0, "jit_compile": False,
        "eta": 0.0,
    }  # fmt: skip


def test_editing_changes_half_of_an_image_by_default_and_all_of_what_is_masked():
    assert settings(init_image="a.png")["strength"] == 0.5
    assert settings(init_image="a.png", strength=0.0)["strength"] == 0.0
    assert "strength" not in settings(init_image="a.png", mask="b.png")
    asked = settings(init_image="a.png", mask="b.png", strength=0.7, jump_length=5, resamplings=3)
    assert (asked["strength"], asked["jump_length"], asked["resamplings"]) == (0.7, 5, 3)


@pytest.mark.parametrize(
    "flags, needed",
    [
        ({"eta": 0.5}, "--eta needs --sampler=ddim"),
        ({"variance": "small", "sampler": "ddim"}, "--variance needs --sampler=ancestral"),
        ({"strength": 0.5}, "--strength needs an --init_image"),
        ({"mask": "m.png"}, "--mask needs an --init_image"),
        (
            {"mask": "m.png", "init_image": "a.png", "sampler": "dpm_solver"},
            "--mask needs an --init_image and",
        ),
        ({"jump_length": 5}, "--jump_length needs a --mask"),
        ({"resamplings": 5, "init_image": "a.png"}, "--resamplings needs a --mask"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, needed):
    assert needed in refusal(definitions.sampling_settings, CONFIG, **flags)


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"steps": "1001"}, "the process has 1000 steps, so use 1 to 1000"),
        ({"steps": "300,90,60,20,20"}, "use 1 to 200 in each of 5 sections"),
        ({"steps": "0"}, "use 1 to 1000"),
        ({"steps": ""}, "write a number"),
        ({"steps": "ten"}, "write a number, or one for each section"),
        ({"steps": "90,60", "schedule": "logsnr"}, "--schedule=logsnr takes one number of steps"),
    ],
)
def test_impossible_steps_are_refused(flags, message):
    assert message in refusal(definitions.sampling_settings, CONFIG, **flags)


def test_guidance_without_classes_is_refused():
    assert "no classes to guide with" in refusal(definitions.sampling_settings, UNCONDITIONAL, guidance=2.0)


def test_labels_are_numbers_or_names():
    with flagsaver.flagsaver(labels=["owl", "0", " dog & wolf"]):
        assert definitions.sampling_labels(CONFIG) == [2, 0, 1]
    assert definitions.sampling_labels(CONFIG) is None
    for label in ("3", "-1", "bird"):
        message = refusal(definitions.sampling_labels, CONFIG, labels=[label])
        assert f"there is no class {label!r}; use 0 to 2 or Cat, Dog & Wolf, Owl" in message
    assert "has no classes" in refusal(definitions.sampling_labels, UNCONDITIONAL, labels=["0"])


def test_several_run_folders():
    with flagsaver.flagsaver(run_dir="runs/low,runs/high"):
        assert definitions.run_dirs() == ["runs/low", "runs/high"]
    with flagsaver.flagsaver(run_dir=None, dataset=None):
        assert definitions.run_dirs() == ["runs/emoji64"]
    assert "names no folder" in refusal(lambda _: definitions.run_dirs(), None, run_dir=",")


@pytest.mark.parametrize(
    "dataset, folder",
    [
        ("lsun_church", "runs/lsun_church"), ("folder:data/photos/", "runs/photos"),
        ("tfds:cifar10", "runs/cifar10"),
        ("tfds:cifar10:3.0.2", "runs/cifar10"), ("tfds:lsun/church:1.0.0", "runs/lsun-church"),
    ],
)  # fmt: skip
def test_a_run_is_named_after_its_data(dataset, folder):
    with flagsaver.flagsaver(run_dir=None, dataset=dataset, split=None):
        assert definitions.run_dir() == folder
