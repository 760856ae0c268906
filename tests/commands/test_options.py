"""Options that several modes have: what is sampled, from which runs, with which labels, into which folder."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from pdm_tf.commands import evaluate, export, train
from pdm_tf.commands.options import (
    DrawingOptions,
    RunOptions,
    class_numbers,
    default_run_dir,
    sampled_as_asked,
)
from pdm_tf.config.fields import Config, DataConfig, NetworkConfig, SamplingConfig
from pdm_tf.errors import UserError
from pdm_tf.run import EXPERTS
from pdm_tf.weights import write_arrays
from tests.tiny_runs import tiny_config, write_run

CONFIG = Config(
    data=DataConfig(num_classes=3, label_names=("Cat", "Dog & Wolf", "Owl")),
    network=NetworkConfig(class_conditioning="gate"),
    sampling=SamplingConfig(sampler="dpm_solver", steps=(20,), spacing="logsnr", guidance=1.25),
)
UNCONDITIONAL = CONFIG.replace({"network.class_conditioning": "none", "sampling.guidance": 1.0})


def sampling(**options) -> SamplingConfig:
    return sampled_as_asked(CONFIG, DrawingOptions(**options)).sampling


def test_options_override_what_the_run_has_and_nothing_else():
    assert sampling() == CONFIG.sampling
    asked = sampling(sampler="ddim", eta=0.5, steps=(50, 20), spacing="even", jit_compile=True)
    assert asked == SamplingConfig("ddim", (50, 20), "even", guidance=1.25, eta=0.5, jit_compile=True)
    assert sampling(guidance=1.0).guidance == 1.0
    assert sampled_as_asked(CONFIG, DrawingOptions(sampler="ddim")).data == CONFIG.data


def test_a_default_of_the_mode_goes_before_the_run_and_after_what_is_asked_for():
    options = DrawingOptions(), DrawingOptions(sampler="ddim")
    samplers = [sampled_as_asked(CONFIG, one, sampler="ancestral").sampling.sampler for one in options]
    assert samplers == ["ancestral", "ddim"]


@pytest.mark.parametrize(
    "config, options, message",
    [
        (
            CONFIG,
            {"eta": 0.5, "spacing": "even"},
            "--eta does nothing for --sampler=dpm_solver: it is for ddim",
        ),
        (CONFIG, {"steps": (1001,)}, "--steps=1001: the process has 1000 steps, so use 1 to 1000"),
        (CONFIG, {"steps": (300, 90), "spacing": "logsnr"}, "--spacing=logsnr takes one number of steps"),
        (UNCONDITIONAL, {"guidance": 2.0}, "--guidance=2: this model has no classes to guide with"),
    ],
)
def test_what_cannot_be_sampled_is_refused_in_the_words_of_flags(config, options, message):
    with pytest.raises(UserError) as caught:
        sampled_as_asked(config, DrawingOptions(**options))
    assert message in str(caught.value)


# --- labels ---------------------------------------------------------------------------------------


def test_labels_are_numbers_or_names():
    assert class_numbers(["Owl,0, Dog & Wolf", "#1"], CONFIG) == [2, 0, 1, 1]
    assert class_numbers([], CONFIG) is None
    for label in ("3", "-1", "bird", "", "#", "#3", "²", "9" * 5000):
        with pytest.raises(UserError) as caught:
            class_numbers([label], CONFIG)
        message = f"there is no class {label!r}; use 0 to 2, or a name such as Cat, Dog & Wolf, Owl"
        assert message in str(caught.value)
    with pytest.raises(UserError, match=r"there is no class 'owl'; use 0 to 2, or a name such as Owl$"):
        class_numbers(["owl"], CONFIG)
    with pytest.raises(UserError, match="has no classes"):
        class_numbers(["0"], UNCONDITIONAL)


def test_one_text_never_means_two_classes():
    names = ("2", "Cat", "cat", "Pepper,_bell", "e\u0301", "5")
    config = CONFIG.replace({"data.num_classes": 6, "data.label_names": names})
    assert class_numbers(["cat,Cat", "Pepper,_bell", "é", "#2,#0,5"], config) == [2, 1, 3, 4, 2, 0, 5]
    with pytest.raises(UserError, match="--labels=2 is number 2 and the name of number 0: write #2 or #0"):
        class_numbers(["2"], config)
    with pytest.raises(UserError, match="such as Pepper,_bell"):
        class_numbers(["Pepper"], config)


# --- folders --------------------------------------------------------------------------------------


def test_several_run_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "lr=3,bs=4")

    def folders(*texts):
        return RunOptions(run_dir=texts).run_dirs()

    assert folders() == ["runs/avatars64"]
    assert folders("low,high") == folders("low", "high") == folders("low,,high,") == ["low", "high"]
    assert folders("lr=3,bs=4", "a") == ["lr=3,bs=4", "a"]
    with pytest.raises(UserError, match="names no folder"):
        folders(",")
    assert str(train.Options(run_dir=("lr=3,bs=4",)).folder) == "lr=3,bs=4"


@pytest.mark.parametrize(
    "dataset, folder",
    [
        ("folder:data/photos/", "runs/photos"),
        ("folder:gs://bucket/photos/", "runs/photos"),
        ("tfds:lsun/church:1.0.0", "runs/lsun-church"),
    ],
)
def test_a_run_is_named_after_its_data(dataset, folder):
    assert default_run_dir(dataset) == folder
    assert str(train.Options(dataset=dataset, network="vit").folder) == f"{folder}_vit"
    assert str(train.Options(dataset=dataset, teacher=("a",)).folder) == f"{folder}_student"


def test_before_there_is_a_run_the_weights_that_ship_for_its_data_are_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pdm_tf.run.PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setitem(EXPERTS, "avatars32", ("avatars32", "avatars32/low"))
    shipped = tmp_path / "pretrained/avatars32"
    write_run(shipped)
    assert RunOptions(dataset="avatars32").trained_dirs() == [str(shipped)]
    assert "using the weights that ship with the project: " in capsys.readouterr().out
    write_run(shipped / "low", tiny_config(diffusion__t_stop=200))
    assert RunOptions(dataset="avatars32").trained_dirs() == [str(shipped), str(shipped / "low")]
    (model,) = RunOptions(dataset="avatars32").models()
    assert model.title == "low + avatars32"
    write_run(tmp_path / "runs/avatars32")
    assert RunOptions(dataset="avatars32").trained_dirs() == ["runs/avatars32"]
    for dataset in ("avatars64", "folder:data/avatars32"):
        assert RunOptions(dataset=dataset).trained_dirs() != [str(shipped)]


def test_an_evaluation_chooses_its_devices_before_tensorflow_uses_any(monkeypatch):
    done = []
    monkeypatch.setattr(evaluate.devices, "make_strategy", done.append)
    for name in ("load_detector", "compare"):
        monkeypatch.setattr(evaluate, name, lambda *_, name=name, **__: done.append(name))
    monkeypatch.setattr(evaluate.Options, "models", lambda _: done.append("models") or [])
    evaluate.run(evaluate.Options(samples=("a.npz",), strategy="cpu"))
    assert done == ["cpu", "load_detector", "compare"]
    evaluate.run(evaluate.Options(run_dir=("a",), strategy="cpu"))
    assert done[3:] == ["cpu", "load_detector", "models", "compare"]


def test_results_lie_in_the_run_folder_and_what_leaves_it_elsewhere():
    runs = {"run_dir": ("runs/low", "runs/high")}
    assert evaluate.Options(**runs).default_out == "runs/low/evaluation"
    assert evaluate.Options(samples=("a/b.npz",), **runs).default_out == "runs/low/evaluation"
    assert export.Options(run_dir=("runs/a[1]",)).default_out == "exports/a_1_"
    assert export.Options(**runs, format="safetensors").default_out == "exports/low_high_weights"


def test_an_export_takes_an_interval_whose_weight_comes_with_each_call(tmp_path):
    write_run(tmp_path)
    options = export.Options(run_dir=(str(tmp_path),), guidance_interval=(150, 550))
    assert options.model().config.sampling.guidance_interval == (150, 550)


def found_data(image_shape, sha256):
    about = {"name": "d", "num_classes": 0, "label_names": (), "num_examples": {"train": 9}}
    return SimpleNamespace(**about, image_shape=image_shape, sha256=sha256)


def test_other_data_are_refused_as_such_though_the_run_s_network_does_not_fit_them(tmp_path):
    options = train.Options(dataset="folder:a/photos", run_dir=(str(tmp_path),), warm_start="")
    config, run, _, given = train.plan(options, found_data((64, 64, 3), "1"))
    run.write_config(config, given)
    write_arrays(run.weights(10), {"a": np.zeros(1)})
    other = dataclasses.replace(options, dataset="folder:b/photos")
    with pytest.raises(UserError, match=r"other settings: data\.dataset \(folder:a/photos, sha256 1 there"):
        train.plan(other, found_data((65, 65, 3), "2"))
    assert train.plan(other, found_data((64, 64, 3), "1")).config.data.dataset == "folder:b/photos"


@pytest.mark.parametrize(("accelerator", "size"), [(False, "tiny"), (True, "base")])
def test_a_run_notes_the_size_that_its_machine_chose(tmp_path, monkeypatch, accelerator, size):
    monkeypatch.setattr(train.devices, "has_accelerator", lambda _: accelerator)
    info = found_data((64, 64, 3), "1")
    options = train.Options(dataset=f"folder:{tmp_path}", run_dir=(str(tmp_path),), warm_start="")
    assert options.given.size is None and train.plan(options, info).given.size == size


def test_settings_that_do_nothing_are_named(tmp_path, capsys):
    settings = ("network.depth=3", "distillation.steps=4", "optimizer.beta_1=0.8")
    train.plan(train.Options(dataset="emoji64", run_dir=(str(tmp_path),), set=settings), None)
    assert capsys.readouterr().out.splitlines() == [
        "note: distillation.steps does nothing here: it is for student",
        "note: network.depth does nothing here: it is for vit",
    ]


def test_a_run_without_weights_may_begin_otherwise(tmp_path):
    """Such as one that failed for want of memory."""
    options = train.Options(dataset="emoji64", run_dir=(str(tmp_path),), batch_size=64)
    config, run, _, given = train.plan(options, None)
    run.write_config(config, given)
    smaller = dataclasses.replace(options, batch_size=None)
    assert train.plan(smaller, None).config.training.batch_size == 32
    write_arrays(run.weights(10), {"a": np.zeros(1)})
    with pytest.raises(UserError, match=r"holds a run with other settings: training\.batch_size"):
        train.plan(smaller, None)
