"""What each mode refuses before it computes: one line, word for word, and status 2."""

from __future__ import annotations

import numpy as np
import pytest

import main
from pdm_tf.images import write_png
from tests.tiny_runs import tiny_config, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some runs and a small picture."""
    folder = tmp_path_factory.mktemp("refusals")
    write_run(folder / "whole")
    write_run(folder / "low", tiny_config(diffusion__t_stop=400, network__patch_size=2), 1)
    write_run(folder / "plain", tiny_config(network__class_conditioning="none"), 3)
    write_png(folder / "small.png", np.zeros((8, 8, 3), np.uint8))
    return folder


REFUSALS = [
    (
        "--mode=trian",
        "flag --mode=trian: value should be one of <train|sample|evaluate|analyze|export|page|describe> "
        "(python main.py --help lists the flags)",
    ),
    ("--nonsense=1", "there is no flag --nonsense: python main.py --mode=train --help lists the flags"),
    ("train", "unexpected argument 'train'; flags are written --name=value"),
    (
        "--mode=train --num_samples=2",
        "--num_samples is a flag of --mode=sample|evaluate|analyze and not of --mode=train",
    ),
    (
        "--mode=sample --batch_size=64",
        "--batch_size is a flag of --mode=train|describe and not of --mode=sample; did you mean "
        "--sample_batch_size?",
    ),
    (
        "--mode=describe --dataset=cifar",
        "--dataset=cifar: use emoji64, avatars32, avatars64, avatars256, avatars1024, lsun_church, "
        "imagenet256, ffhq1024, tfds:NAME or folder:PATH",
    ),
    (
        "--mode=describe --patch_size=5",
        "image height 64 does not divide by patch_size * 2^(levels - 1) = 5 * 4 = 20: resize to 60, or use a "
        "smaller network.patch_size or fewer network.channel_multipliers",
    ),
    (
        "--mode=describe --set=training.step=1",
        "--set: there is no setting 'training.step'; did you mean training.steps?",
    ),
    (
        "--mode=describe --set=optimizer.learning_rate=inf",
        "optimizer.learning_rate=inf: use a finite number",
    ),
    (
        "--mode=describe --size=tiny",
        "--size=tiny is for tfds: and folder: data, and avatars64 has a network of its own: leave it out",
    ),
    (
        "--mode=describe --dataset=ffhq1024 --split=low",
        "--split=low is for imagenet256; for ffhq1024 choose an expert's noise levels with "
        "--set=diffusion.t_start=... and --set=diffusion.t_stop=...",
    ),
    (
        "--mode=train --run_dir=a --run_dir=b",
        "--run_dir is given 2 times: a run is trained in one folder",
    ),
    ("--mode=sample --guidance=nan", "--guidance=nan: use a finite number"),
    ("--mode=sample --steps=0", "--steps=0: use a number above 0"),
    (
        "--mode=sample --run_dir=FOLDER/none",
        "FOLDER/none holds no run (no config.json): train one there first",
    ),
    (
        "--mode=sample --run_dir=FOLDER/low",
        "FOLDER/low was not trained on 400 <= t < 1000: name the run of that interval too, as in "
        "FOLDER/low,RUN",
    ),
    (
        "--mode=sample --run_dir=FOLDER/low,FOLDER/plain",
        "FOLDER/low and FOLDER/plain cannot be experts of one model: only one of them knows classes",
    ),
    (
        "--mode=sample --run_dir=FOLDER/whole --labels=9",
        "--labels: there is no class '9'; use 0 to 2, or a name such as cat, dog, owl",
    ),
    (
        "--mode=sample --run_dir=FOLDER/whole --steps=2000",
        "--steps=2000: the process has 1000 steps, so use 1 to 1000 in all",
    ),
    (
        "--mode=sample --run_dir=FOLDER/plain --guidance=2",
        "--guidance=2: this model has no classes to guide with",
    ),
    (
        "--mode=sample --run_dir=FOLDER/whole --mask=FOLDER/small.png",
        "--mask needs an --init_image",
    ),
    ("--mode=sample --run_dir=FOLDER/whole --strength=0.3", "--strength needs an --init_image"),
    (
        "--mode=export --run_dir=FOLDER/whole --eta=0.5",
        "--eta does nothing for --sampler=ancestral: it is for ddim",
    ),
    (
        "--mode=evaluate --run_dir=FOLDER/whole --reference=test",
        "reference test: there is no such file or folder, and emoji64 has the splits train, validation",
    ),
]


@pytest.mark.parametrize("line, message", REFUSALS)
def test_it_is_refused_word_for_word(folder, capsys, line, message):
    status = main.main([word.replace("FOLDER", str(folder)) for word in line.split()])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (status, errors) == (2, [f"error: {message.replace('FOLDER', str(folder))}"])
