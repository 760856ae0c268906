"""What the flags of --mode=sample become, and what they refuse."""

import pytest
from absl.testing import flagsaver

from flags import definitions
from flags.definitions import FLAGS
from pdm_tf.config.fields import Config, DataConfig, NetworkConfig, SamplingConfig
from pdm_tf.errors import UserError

CONFIG = Config(
    data=DataConfig(num_classes=3, label_names=("Cat", "Dog & Wolf", "Owl")),
    network=NetworkConfig(class_conditioning="gate"),
    sampling=SamplingConfig(sampler="dpm_solver", steps=(20,), spacing="logsnr", guidance=1.25),
)
UNCONDITIONAL = CONFIG.replace({"network.class_conditioning": "none", "sampling.guidance": 1.0})


@pytest.fixture(autouse=True)
def parsed():
    if not FLAGS.is_parsed():
        FLAGS(["main.py"])


def settings(config=CONFIG, **flags) -> SamplingConfig:
    with flagsaver.flagsaver(**flags):
        return definitions.with_sampling_flags(config).sampling


def edit(**flags):
    with flagsaver.flagsaver(**flags):
        return definitions.edit_options()


def refusal(function, *args, **flags):
    with pytest.raises(UserError) as caught, flagsaver.flagsaver(**flags):
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_flags_override_what_the_run_has_and_nothing_else():
    assert settings() == CONFIG.sampling
    asked = settings(sampler="ddim", eta=0.5, steps="50,20", spacing="even", jit_compile=True)
    assert asked == SamplingConfig(
        "ddim", (50, 20), "even", guidance=1.25, eta=0.5, jit_compile=True
    )  # fmt: skip
    assert settings(guidance=1.0).guidance == 1.0
    assert settings(sampler="unipc", order=3).order == 3
    with flagsaver.flagsaver(sampler="ddim"):
        assert definitions.with_sampling_flags(CONFIG).data == CONFIG.data


def test_editing_changes_half_of_an_image_by_default_and_all_of_what_is_masked():
    assert edit(init_image="a.png") == {}
    assert edit(init_image="a.png", strength=0.0) == {"strength": 0.0}
    inpaint = {"init_image": "a.png", "mask": "b.png"}
    assert edit(**inpaint) == {"strength": 1.0} and settings(**inpaint).sampler == "ancestral"
    asked = {"strength": 0.7, "jump_length": 5, "resamplings": 3}
    assert edit(**inpaint, **asked) == asked


@pytest.mark.parametrize(
    "flags, needed",
    [
        ({"eta": 0.5, "spacing": "even"}, "--eta needs --sampler=ddim"),
        ({"variance": "small", "sampler": "ddim"}, "--variance needs --sampler=ancestral"),
        ({"strength": 0.5}, "--strength needs an --init_image"),
        ({"mask": "m.png"}, "--mask needs an --init_image"),
        (
            {"mask": "m.png", "init_image": "a.png", "sampler": "dpm_solver"},
            "--mask needs an --init_image and",
        ),
        ({"jump_length": 5}, "--jump_length needs a --mask"),
        ({"resamplings": 5, "init_image": "a.png"}, "--resamplings needs a --mask"),
        ({"order": 3}, "--order needs --sampler=unipc"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, needed):
    assert needed in refusal(definitions.with_sampling_flags, CONFIG, **flags)


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"steps": "1001"}, "the process has 1000 steps, so use 1 to 1000"),
        ({"steps": "300,90,60,20,20", "spacing": "even"}, "use 1 to 200 in each of 5 sections"),
        ({"steps": "0"}, "--steps=0: use a number above 0"),
        ({"steps": ""}, "write a number"),
        ({"steps": "ten"}, "--steps=ten: use a whole number"),
        ({"steps": "90,60", "spacing": "logsnr"}, "--spacing=logsnr takes one number of steps"),
    ],
)
def test_impossible_steps_are_refused(flags, message):
    assert message in refusal(definitions.with_sampling_flags, CONFIG, **flags)


def test_guidance_without_classes_is_refused():
    assert "no classes to guide with" in refusal(definitions.with_sampling_flags, UNCONDITIONAL, guidance=2.0)


def test_lengths_of_averages_are_numbers_of_a_run():
    with flagsaver.flagsaver(ema=["0.01", "0.1", " 0.10"]):
        assert definitions.ema_lengths() == [0.01, 0.1]
    assert definitions.ema_lengths() == []
    assert "--ema=long: use a number" in refusal(definitions.ema_lengths, ema=["long"])
    message = refusal(definitions.ema_lengths, ema=["0.1"], samples=["a.npz"])
    assert message == "--ema is for a run's weights, and --samples gives images: leave one of them out"


def test_labels_are_numbers_or_names():
    with flagsaver.flagsaver(labels=["Owl,0, Dog & Wolf", "#1"]):
        assert definitions.sampling_labels(CONFIG) == [2, 0, 1, 1]
    assert definitions.sampling_labels(CONFIG) is None
    for label in ("3", "-1", "bird", "", "#", "#3", "²", "9" * 5000):
        message = refusal(definitions.sampling_labels, CONFIG, labels=[label])
        assert f"there is no class {label!r}; use 0 to 2, or a name such as Cat, Dog & Wolf, Owl" in message
    message = refusal(definitions.sampling_labels, CONFIG, labels=["owl"])
    assert message == "--labels: there is no class 'owl'; use 0 to 2, or a name such as Owl"
    assert "has no classes" in refusal(definitions.sampling_labels, UNCONDITIONAL, labels=["0"])


def test_one_text_never_means_two_classes():
    names = ("2", "Cat", "cat", "Pepper,_bell", "e\u0301", "5")
    config = CONFIG.replace({"data.num_classes": 6, "data.label_names": names})
    with flagsaver.flagsaver(labels=["cat,Cat", "Pepper,_bell", "é", "#2,#0,5"]):
        assert definitions.sampling_labels(config) == [2, 1, 3, 4, 2, 0, 5]
    message = refusal(definitions.sampling_labels, config, labels=["2"])
    assert message == "--labels=2 is number 2 and the name of number 0: write #2 or #0"
    assert "such as Pepper,_bell" in refusal(definitions.sampling_labels, config, labels=["Pepper"])


OF_A_MODE = [(mode, name) for mode in definitions.MODES for name in definitions.flags_of(mode)]
NOT_OF_IT = [
    (mode, name)
    for mode in definitions.MODES
    for name in sorted({name for _, name in OF_A_MODE} - set(definitions.flags_of(mode)))
]
VALUES = {
    "labels": ["1"], "set": ["seed=1"], "steps": "9", "sampler": "ddim", "spacing": "even",
    "variance": "small", "strategy": "cpu", "guidance": 2.0, "eta": 0.5, "strength": 0.3,
    "jit_compile": True, "save_pngs": True, "samples": ["a.npz"], "ema_length": 0.1, "ema": ["0.1"],
    "what": "fig4",
}  # fmt: skip
TEXTS = (
    "data_dir",
    "host",
    "prediction",
    "warm_start",
    "init_image",
    "mask",
    "out",
    "reference",
    "detector",
    "inception",
)


@pytest.mark.parametrize(("mode", "name"), NOT_OF_IT)
def test_a_flag_of_another_mode_is_refused(mode, name):
    value = VALUES.get(name, "x" if name in TEXTS else 3)
    message = refusal(definitions.check_mode, mode=mode, **{name: value})
    assert message.startswith(f"--{name} is for --mode=") and f"in --mode={mode} " in message


@pytest.mark.parametrize(
    ("mode", "name", "right"),
    [
        ("train", "steps", "--train_steps"),
        ("describe", "steps", "--train_steps"),
        ("train", "guidance", "--set=sampling.guidance="),
        ("train", "num_samples", "--set=training.sample_images="),
        ("sample", "batch_size", "--sample_batch_size"),
        ("sample", "ema", "--ema_length"),
        ("evaluate", "ema_length", "--ema"),
        ("sample", "train_steps", "--steps"),
        ("sample", "patch_size", "config.json has it"),
        ("export", "seed", "each call gives it"),
    ],
)
def test_the_right_flag_is_named(mode, name, right):
    assert right in refusal(definitions.check_mode, mode=mode, **{name: VALUES.get(name, 3)})


def test_flags_of_the_mode_pass():
    for mode, name in OF_A_MODE:
        if name not in ("mode", *TEXTS, "dataset", "run_dir", "split"):
            with flagsaver.flagsaver(**{"mode": mode, name: VALUES.get(name, 3)}):
                definitions.check_mode()


def test_every_flag_of_this_project_has_modes():
    own = {flag.name for flag in FLAGS.flags_by_module_dict()["flags.definitions"]}
    assert own == {name for _, name in OF_A_MODE}


def test_several_run_folders():
    def folders(*run_dir, runs=()):
        with flagsaver.flagsaver(run_dir=list(run_dir) or None, dataset=None):
            return definitions.run_dirs(lambda text: text in runs)

    assert folders() == ["runs/avatars64"]
    assert folders("low,high") == folders("low", "high") == folders("low,,high,") == ["low", "high"]
    assert folders("lr=3,bs=4", runs=["lr=3,bs=4"]) == ["lr=3,bs=4"]
    assert folders("lr=3,bs=4", "a,b", runs=["lr=3,bs=4", "a", "b"]) == ["lr=3,bs=4", "a", "b"]
    assert "names no folder" in refusal(definitions.run_dirs, lambda text: False, run_dir=[","])
    assert "a run is trained in one folder" in refusal(definitions.run_dir, run_dir=["a", "b"])
    assert "names no folder" in refusal(definitions.run_dir, run_dir=[""])
    with flagsaver.flagsaver(run_dir=["lr=3,bs=4"]):
        assert definitions.run_dir() == "lr=3,bs=4"


@pytest.mark.parametrize(
    "dataset, folder",
    [
        ("lsun_church", "runs/lsun_church"), ("folder:data/photos/", "runs/photos"),
        ("folder:data/plants,small", "runs/plants,small"), ("folder:gs://bucket/photos/", "runs/photos"),
        ("tfds:cifar10", "runs/cifar10"),
        ("tfds:cifar10:3.0.2", "runs/cifar10"), ("tfds:lsun/church:1.0.0", "runs/lsun-church"),
    ],
)  # fmt: skip
def test_a_run_is_named_after_its_data(dataset, folder):
    with flagsaver.flagsaver(run_dir=None, dataset=dataset, split=None):
        assert definitions.run_dir() == folder
