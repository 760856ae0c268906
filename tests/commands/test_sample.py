"""--mode=sample through the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdm_tf.config.presets import DEFAULT_DATASET
from pdm_tf.run import PRETRAINED
from tests.in_process import run_mode
from tests.tiny_runs import tiny_config, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "low", tiny_config(diffusion__t_stop=400, network__patch_size=2), 1)
    write_run(folder / "high", tiny_config(diffusion__t_start=400, network__patch_size=8), 2)
    write_run(folder / "plain", tiny_config(network__class_conditioning="none"), 3)
    return folder


def sample(capsys, **flags) -> tuple[int, str]:
    """Exit status and output of one --mode=sample."""
    defaults = {"mode": "sample", "strategy": "cpu", "steps": "3", "num_samples": 2, "sample_batch_size": 2}
    texts = {key: str(value) if isinstance(value, Path) else value for key, value in flags.items()}
    return run_mode(capsys, **{**defaults, **texts})


def test_experts_guidance_and_a_trajectory(runs, tmp_path, capsys):
    run_dir = f"{runs / 'low'},{runs / 'high'}"
    flags = {"sampler": "dpm_solver", "guidance": 2.0, "labels": ["owl", "cat"], "trajectory": 3}
    status, out = sample(capsys, run_dir=run_dir, out=tmp_path, **flags)
    assert status == 0
    lines = out.strip().splitlines()[-3:]
    assert lines == [
        f"trajectory: {tmp_path}/trajectory.png and {tmp_path}/trajectory.gif",
        f"grid: {tmp_path}/grid.png",
        f"samples: {tmp_path}/samples.npz",
    ]
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].shape == (2, 16, 16, 3) and file["arr_1"].tolist() == [2, 0]
    assert Image.open(tmp_path / "trajectory.png").size == (2 + 3 * 18, 2 + 2 * 18)


def test_an_unconditional_run_has_no_labels_and_lies_in_the_run_folder(runs, capsys):
    assert sample(capsys, run_dir=runs / "plain", sampler="ddim", spacing="logsnr")[0] == 0
    with np.load(runs / "plain" / "samples" / "samples.npz") as file:
        assert file.files == ["arr_0"]


def test_a_picture_is_edited_as_much_as_strength_says(runs, tmp_path, capsys):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    for strength in ("0.3", "0.9"):
        flags = {"init_image": tmp_path / "red.png", "strength": strength, "steps": "9"}
        assert sample(capsys, run_dir=runs / "plain", out=tmp_path / strength, **flags)[0] == 0
    assert np.abs(pixels(tmp_path / "0.3") - pixels(tmp_path / "0.9")).max() > 0.01


def pixels(folder):
    with np.load(folder / "samples.npz") as file:
        return file["arr_0"]


def test_the_weights_that_ship_are_drawn_as_their_config_says_unless_flags_say_otherwise(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)  # where there is no run of the default name
    shipped = PRETRAINED / DEFAULT_DATASET
    one = {"num_samples": 1, "sample_batch_size": 1}
    status, said = sample(capsys, **one, steps=None, out=tmp_path / "plain")
    assert status == 0 and f"using the weights that ship with the project: {shipped}" in said
    how = {"sampler": "dpm_solver", "spacing": "logsnr", "steps": "20"}
    how |= {"guidance": 3.0, "guidance_interval": "150,550", "threshold": "static"}
    assert sample(capsys, run_dir=shipped, out=tmp_path / "same", **one, **how)[0] == 0
    assert sample(capsys, run_dir=shipped, **one, steps=None, spacing="even", out=tmp_path / "other")[0] == 0
    plain, same, other = (pixels(tmp_path / name) for name in ("plain", "same", "other"))
    np.testing.assert_array_equal(plain, same)
    assert plain.std() > 10 and np.any(plain != other)


def test_samples_of_other_settings_are_never_replaced_and_equal_ones_go_on_where_they_were(
    tmp_path, runs, capsys
):
    run = tmp_path / "run"
    shutil.copytree(runs / "plain", run, ignore=shutil.ignore_patterns("samples*"))
    flags = {"run_dir": run, "sampler": "ddim"}
    for steps, name in (("3", "samples"), ("2", "samples_2"), ("3", "samples"), ("4", "samples_3")):
        status, said = sample(capsys, **flags, steps=steps)
        assert status == 0 and said.endswith(f"samples: {run / name}/samples.npz\n")
    first = pixels(run / "samples")
    status, said = sample(capsys, **flags, steps="2", out=run / "samples")
    assert status == 2 and "other settings (samples.json), or more: choose another --out" in said
    assert sample(capsys, **flags, num_samples=1)[1].endswith(f"{run}/samples_4/samples.npz\n")  # fewer
    np.testing.assert_array_equal(first, pixels(run / "samples"))
    (run / "samples" / "samples.json").unlink()  # as of a version that wrote none
    assert sample(capsys, **flags, seed=1)[1].endswith(f"{run}/samples_5/samples.npz\n")
