"""What each mode refuses before it computes: one line, word for word, and status 2."""

from __future__ import annotations

import pytest

import main
from tests.tiny_runs import tiny_config, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Some runs."""
    folder = tmp_path_factory.mktemp("refusals")
    write_run(folder / "whole")
    write_run(folder / "labelled", tiny_config(diffusion__label_dropout=0.0), 2)
    student = {
        "distillation__teacher": ("whole",),
        "distillation__steps": 2,
        "distillation__first": 4,
        "diffusion__label_dropout": 0.0,
    }
    sampled = {"sampling__sampler": "ddim", "sampling__steps": (2,), "sampling__spacing": "logsnr_trailing"}
    write_run(folder / "student", tiny_config(**student, **sampled), 3)
    write_run(folder / "low", tiny_config(diffusion__t_stop=400, network__patch_size=2), 1)
    write_run(folder / "large", tiny_config(data__image_shape=(32, 32, 3)), 4)
    return folder


REFUSALS = [
    (
        "--mode=trian",
        "flag --mode=trian: value should be one of <train|sample|evaluate|analyze|export|page|describe> "
        "(python main.py --help lists the flags)",
    ),
    ("--nonsense=1", "there is no flag --nonsense: python main.py --mode=train --help lists the flags"),
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
    ("--mode=describe --set=optimizer.learning_rate=inf", "optimizer.learning_rate=inf: use a finite number"),
    (
        "--mode=describe --set=data.crop=32",
        "data.crop=32: this network attends over the whole grid; use a U-Net with network.local=true and "
        "network.attention_resolutions= (empty)",
    ),
    ("--mode=describe --set=data.dataset=emoji64", "--set=data.dataset: use --dataset"),
    ("--mode=train --run_dir=a --run_dir=b", "--run_dir is given 2 times: a run is trained in one folder"),
    (
        "--mode=sample --run_dir=FOLDER/whole --guidance_interval=300",
        "--guidance_interval=300: write two t, LO,HI, the first below the second",
    ),
    (
        "--mode=sample --run_dir=FOLDER/whole --guidance_interval=1500,2000",
        "--guidance_interval=1500,2000: there is no t above 999",
    ),
    (
        "--mode=train --teacher=FOLDER/whole --network=vit --run_dir=FOLDER/new",
        "a student has its teacher's network: leave --network and --size out",
    ),
    (
        "--mode=sample --run_dir=FOLDER/low",
        "FOLDER/low was not trained on 400 <= t < 1000: name the run of that interval too, as in "
        "FOLDER/low,RUN",
    ),
    ("--mode=sample --run_dir=FOLDER/whole --strength=0.3", "--strength needs an --init_image"),
    (
        "--mode=sample --run_dir=FOLDER/labelled --guidance=2",
        "--guidance=2: this model has never learnt images without a class (diffusion.label_dropout=0), which "
        "guidance leads away from",
    ),
    (
        "--mode=sample --run_dir=FOLDER/whole --guide=FOLDER/labelled",
        "--guide does nothing at --guidance=1: give a weight, as in --guidance=1.5",
    ),
    (
        "--mode=sample --run_dir=FOLDER/whole --guide=FOLDER/student --guidance=2",
        "FOLDER/student cannot guide FOLDER/whole: it is a student, which knows few t",
    ),
    (
        "--mode=evaluate --run_dir=FOLDER/student --likelihood",
        "FOLDER/student is a student, which knows few of the t in a likelihood: measure its teacher's",
    ),
    (
        "--mode=analyze --run_dir=FOLDER/student --what=fig2",
        "fig2 looks at all t, and FOLDER/student is a student, which knows few: give its teacher",
    ),
    (
        "--mode=evaluate --run_dir=FOLDER/whole --likelihood --ema=0.1",
        "--ema does nothing with --likelihood: leave it out",
    ),
    (
        "--mode=evaluate --run_dir=FOLDER/whole --likelihood --guidance=2",
        "--guidance does nothing with --likelihood: leave it out",
    ),
    (
        "--mode=evaluate --samples=a.npz --guidance=2",
        "--guidance does nothing with --samples alone: give --run_dir, too, or leave it out",
    ),
    (
        "--mode=evaluate --samples=a.npz --num_samples=8",
        "--num_samples does nothing with --samples alone: give --run_dir, too, or leave it out",
    ),
    (
        "--mode=evaluate --run_dir=FOLDER/whole --inception=graph.pb",
        "inception does nothing without detector=inception: give both or none",
    ),
    ("--mode=train --nowarm_start", "--warm_start is no switch: give it a value, as --warm_start=..."),
    ("--mode=sample --init_image=", "an empty path: name a file or folder"),
    (
        "--mode=train --teacher=FOLDER/low --teacher=FOLDER/whole",
        "FOLDER/low cannot draw from noise, and the student begins with its weights: name the teacher's "
        "expert for the most noise first",
    ),
    (
        "--mode=train --teacher=FOLDER/whole --teacher=FOLDER/large",
        "--teacher: experts of images of several sizes have no student; name others",
    ),
    (
        "--mode=evaluate --run_dir=FOLDER/low,FOLDER/whole,FOLDER/labelled",
        "FOLDER/whole and FOLDER/labelled cover all t: name one of them with FOLDER/low, and compare the "
        "others in another command",
    ),
    (
        "--mode=train --train_steps=800 --set=training.keep_best=true --run_dir=FOLDER/new",
        "training.keep_best keeps what scores best: set training.score_every to no more than the 800 steps "
        "of the run",
    ),
    (
        "--mode=evaluate --run_dir=FOLDER/whole --strata=8",
        "--strata is for --likelihood: give both, or leave it out",
    ),
]


@pytest.mark.parametrize("line, message", REFUSALS)
def test_it_is_refused_word_for_word(folder, capsys, line, message):
    status = main.main([word.replace("FOLDER", str(folder)) for word in line.split()])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (status, errors) == (2, [f"error: {message.replace('FOLDER', str(folder))}"])
