"""What the page does, without gradio: its pictures are those of --mode=sample, its refusals a sentence."""

import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import leaves
from pdm_tf.errors import UserError
from pdm_tf.images import from_uint8, write_png
from pdm_tf.page import studio as studio_module
from pdm_tf.page.studio import Shown, enlarged, fields_of, mask_of, with_patches
from pdm_tf.sampling.edit import Edit
from tests.fakes import FakeDenoiser
from tests.in_process import run_mode
from tests.page.studios import shown, studio_of, write_runs
from tests.tiny_runs import tiny_config

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), bool)
MASK[4:12, 2:9] = True


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"), sampling__steps=(4,))


@pytest.fixture(scope="module")
def studio(runs):
    return studio_of(*(runs / name for name in ("whole", "low", "high", "plain", "grey")))


def last(shots):
    *_, shot = shots
    return shot


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def downloaded(shot, folder):
    """The files of a drawing, unpacked."""
    grid, pngs, samples = shot.files
    with zipfile.ZipFile(pngs) as file:
        file.extractall(folder / "pngs")
    return {
        **files_of(folder), "grid.png": grid.read_bytes(), "samples.npz": samples.read_bytes()
    }  # fmt: skip


# What is asked of the page, and of the command line.
SAME = {
    "two batches of all classes": ("whole", {}, [], 5, 18, {}),
    "guided": (
        "whole", {"sampler": "dpm_solver", "guidance": 2.0, "spacing": "logsnr"}, [2, 0], 1, 3,
        {"sampler": "dpm_solver", "guidance": 2.0, "spacing": "logsnr", "labels": ["owl", "cat"]},
    ),
    "experts": (
        "low + high", {"sampler": "ddim", "eta": 0.5, "steps": "3,2"}, [], 2, 2,
        {"sampler": "ddim", "eta": 0.5, "steps": "3,2"},
    ),
    "grey": ("grey", {"steps": 2}, [], 0, 2, {"steps": "2"}),
    "edited": ("whole", {"strength": 0.7}, [1], 3, 2, {"strength": 0.7, "labels": ["dog"]}),
    "painted": (
        "plain", {"sampler": "ancestral", "strength": 1.0, "jump_length": 1, "resamplings": 2}, [], 3, 2,
        {"jump_length": 1, "resamplings": 2},
    ),
}  # fmt: skip


FAST = ("two batches of all classes", "painted")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in SAME]
)
def test_a_picture_of_the_page_is_that_of_the_command(case, studio, runs, tmp_path, capsys):
    name, values, labels, seed, count, flags = SAME[case]
    arrays = {}
    if case in ("edited", "painted"):
        arrays["image"], flags = IMAGE, {**flags, "init_image": str(tmp_path / "image.png")}
        write_png(tmp_path / "image.png", IMAGE)
    if case == "painted":
        arrays["mask"], flags = MASK, {**flags, "mask": str(tmp_path / "mask.png")}
        write_png(tmp_path / "mask.png", MASK[..., None] * np.uint8(255))
    one = shown(studio, name)
    shot = last(studio.draw(one, studio.wanted(one, values, labels, seed, count), **arrays))
    run_dir = ",".join(str(runs / part) for part in name.split(" + "))
    status, said = run_mode(
        capsys, mode="sample", strategy="cpu", run_dir=run_dir, seed=seed, num_samples=count, save_pngs=True,
        out=str(tmp_path / "command"), **flags,
    )  # fmt: skip
    assert status == 0, said
    assert downloaded(shot, tmp_path / "page") == files_of(tmp_path / "command")
    with np.load(tmp_path / "command" / "samples.npz") as file:
        np.testing.assert_array_equal(np.broadcast_to(shot.images, file["arr_0"].shape), file["arr_0"])


def slow_denoiser(calls):
    """Notes its timesteps, one at a time."""

    def note(t):
        calls.append(int(t[0]))
        return np.float32(0.5)

    def answer(z, t, labels):
        return z * tf.ensure_shape(tf.numpy_function(note, [t], tf.float32), ())

    return FakeDenoiser(answer, num_classes=0)


def test_pictures_are_seen_on_their_way_and_leaving_ends_the_work(studio, monkeypatch):
    monkeypatch.setattr(studio_module, "FRAME_SECONDS", 0.0)
    calls, config = [], tiny_config(network__class_conditioning="none", sampling__steps=(6,))
    one = Shown("fake", None, slow_denoiser(calls), config, None)
    wanted = studio.wanted(one, {}, [], 0, 18)
    shots = list(studio.draw(one, wanted))
    assert shots[0].images.shape == (18, 16, 16, 3) and (shots[0].images == 128).all()
    assert [shot.said.partition(", ")[2].rpartition(",")[0] for shot in shots[1:-1]] == [
        f"step {step} of 6" for _ in range(2) for step in range(1, 7)
    ]
    assert shots[1].said.startswith("pictures 1 to 16 of 18, ")
    assert shots[-1].said.startswith("18 pictures in ") and len(shots[-1].files) == 3
    for early, late in ((0, 1), (1, 3), (3, 6)):
        assert (shots[early].images[:16] != shots[late].images[:16]).any()
    assert (shots[6].images[16:] == 128).all() and (shots[6].images[:16] == shots[-1].images[:16]).all()
    assert len(calls) == 12
    leaving = studio.draw(one, wanted)
    for _ in range(3):
        next(leaving)
    leaving.close()
    assert len(calls) == 14


def test_closing_ends_a_drawing_and_leaves_no_files(runs):
    studio = studio_of(runs / "plain")
    (one,) = studio.models
    drawn = last(studio.draw(one, studio.wanted(one, {"steps": 1}, [], 0, 1))).files[0]
    drawing = studio.draw(one, studio.wanted(one, {"steps": 9}, [], 0, 1))
    next(drawing)
    studio.close()
    with pytest.raises(UserError, match="the page is closed"):
        next(drawing)
    assert not drawn.exists()


@pytest.mark.slow
def test_experts_that_begin_from_noise_are_shown_alone_too(studio):
    assert [one.name for one in studio.models] == ["whole", "plain", "grey", "low + high"]
    (alone,) = [one for one in studio.sights if one not in studio.models]
    assert alone.name == "high alone, to t = 400" and alone.config.sampling.steps == (2,)
    whole = shown(studio, "low + high")
    assert [whole.patch_size(t) for t in (0, 399, 400, 999)] == [2, 2, 8, 8]
    seen = {}
    for one, shot in studio.compare([whole, alone, shown(studio, "plain")], [1], 0, 2):
        seen[one.name] = shot
    assert list(seen) == [whole.name, alone.name, "plain"]
    assert (seen[whole.name].images != seen[alone.name].images).any()
    # Beside the others a model draws what it draws on its own.
    own = last(studio.draw(whole, studio.wanted(whole, {}, [1], 0, 2)))
    np.testing.assert_array_equal(own.images, seen[whole.name].images)


def test_names_stay_apart(tmp_path):
    names = []
    for folder in ("a", "b"):
        write_runs(tmp_path / folder)
        names.append(tmp_path / folder / "plain")
    first, second = studio_of(*names).models
    assert first.name != second.name and str(names[1]) in second.name
    assert first.classes == [] and shown(studio_of(tmp_path / "a" / "whole"), "whole").classes == [
        ("cat", 0), ("dog", 1), ("owl", 2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values", "labels", "seed", "count", "message"),
    [
        ("whole", {}, [], 0, 0, "count: give a whole number from 1 to 100"),
        ("whole", {}, [], 0, None, "count: give a whole number from 1 to 100"),
        ("whole", {}, [], 0, 101, "count: give a whole number from 1 to 100"),
        ("whole", {}, [], -1, 1, "seed: give a whole number from 0 to 2147483647"),
        ("whole", {}, [], 0.5, 1, "seed: give a whole number from 0 to 2147483647"),
        ("whole", {}, [], float("inf"), 1, "seed: give a whole number from 0 to 2147483647"),
        ("whole", {}, [3], 0, 1, "there are 3 classes: choose of these"),
        ("plain", {}, [0], 0, 1, "there are 0 classes: choose of these"),
        ("plain", {"guidance": 2.0}, [], 0, 1, "sampling.guidance=2: this model has no classes to guide"),
        ("whole", {"guidance": float("nan")}, [], 0, 1, "guidance: give a number"),
        ("whole", {"guidance": None}, [], 0, 1, "guidance=: use a number"),
        ("whole", {"steps": "many"}, [], 0, 1, "steps=many: use a whole number"),
        ("whole", {"steps": ""}, [], 0, 1, "sampling.steps is empty"),
        ("whole", {"steps": "1001"}, [], 0, 1, "sampling.steps=1001: the process has 1000 steps"),
        ("whole", {"steps": "3,3", "spacing": "logsnr"}, [], 0, 1, "sampling.spacing=logsnr takes one"),
        ("whole", {"sampler": "euler"}, [], 0, 1, "sampling.sampler=euler: use one of ancestral"),
        ("whole", {"strength": 1.5}, [], 0, 1, "strength=1.5: use a number from 0 to 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(
    studio, name, values, labels, seed, count, message
):
    with pytest.raises(UserError) as caught:
        studio.wanted(shown(studio, name), values, labels, seed, count)
    assert message in str(caught.value) and "--" not in str(caught.value)


def test_comparing_nothing_is_refused(studio):
    with pytest.raises(UserError, match="choose at least one model"):
        next(studio.compare([], [], 0, 1))


def test_too_little_strength_says_what_helps(studio):
    one = shown(studio, "whole")
    with pytest.raises(UserError, match="a strength of 0 leaves none of the steps") as caught:
        last(studio.draw(one, studio.wanted(one, {"strength": 0.0, "steps": 1}, [], 0, 1), IMAGE))
    assert "--" not in str(caught.value)


def test_every_setting_is_on_some_tab_and_none_where_it_does_nothing():
    tabs = {owner: fields_of(owner, "dpm_solver") for owner in ("", "init_image", "mask")}
    known = {*leaves(SamplingConfig), *leaves(Edit)}
    assert set().union(*tabs.values()) == known - {"jit_compile"}
    assert set(tabs["init_image"]) == {*tabs[""], "strength"}
    assert {"sampler", "strength", "eta", "order"}.isdisjoint(tabs["mask"]) and tabs["mask"]["resamplings"]
    assert not tabs[""]["eta"] and fields_of("", "ddim")["eta"] and not fields_of("", "ddim")["order"]


def test_graphs_and_files_are_kept_for_a_while(studio, monkeypatch):
    one, kept = shown(studio, "plain"), []
    monkeypatch.setattr(studio_module, "DRAWINGS_KEPT", 2)
    for seed in (0, 0, 1, 2):
        shot = last(studio.draw(one, studio.wanted(one, {"steps": 1}, [], seed, 1)))
        kept.append(shot.files[0])
    samplers = [studio._sampler(one, one.config.sampling, None) for _ in range(2)]
    assert samplers[0] is samplers[1]
    assert [path.exists() for path in kept] == [False, False, True, True]
    for steps in range(1, 20):
        wanted = studio.wanted(one, {"steps": steps}, [], 0, 1)
        studio._sampler(one, wanted.sampling, None)
    assert len(studio._samplers) == studio_module.SAMPLERS_KEPT
    assert studio._sampler(one, one.config.sampling, None) is not samplers[0]
    edits = [Edit(from_uint8(image)) for image in (IMAGE, 255 - IMAGE)]
    first, second = (studio._sampler(one, wanted.sampling, edit) for edit in edits)
    assert first is not second


# --- Pictures in and out ---------------------------------------------------------------------------


def layer(*boxes, size=(96, 96)):
    paint = np.zeros((*size, 4), np.uint8)
    for top, left, bottom, right in boxes:
        paint[top:bottom, left:right] = (200, 0, 200, 255)
    return paint


def test_a_brush_makes_the_mask_of_the_pixels_that_it_covers():
    wanted = np.zeros((16, 16), bool)
    wanted[2:4, 5] = True
    np.testing.assert_array_equal(mask_of([layer((12, 30, 24, 36))], (16, 16, 3)), wanted)
    np.testing.assert_array_equal(mask_of([layer((12, 30, 24, 33))], (16, 16, 3)), wanted)  # half of each
    two = [layer((12, 30, 24, 36)), layer((0, 0, 6, 6))]
    wanted[0, 0] = True
    np.testing.assert_array_equal(mask_of(two, (16, 16, 3)), wanted)
    assert mask_of([layer((0, 0, 96, 96))], (16, 16, 3)).all()
    assert mask_of([layer((0, 0, 50, 30), size=(50, 60))], (10, 12, 1)).sum() == 60
    for nothing in ([], [layer()], [layer((12, 30, 24, 32))]):
        with pytest.raises(UserError, match="brush over what is to be painted anew first"):
            mask_of(nothing, (16, 16, 3))


@pytest.mark.slow
def test_a_picture_with_a_full_mask_is_drawn_from_nothing(studio):
    one, full = shown(studio, "whole"), np.ones((16, 16), bool)
    wanted = studio.wanted(one, {"strength": 1.0, "resamplings": 1}, [], 0, 1)
    a, b = (last(studio.draw(one, wanted, image, full)).images for image in (IMAGE, 255 - IMAGE))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_patches_are_seen_at_their_borders_alone(channels):
    image = np.full((8, 12, channels), 255, np.uint8)
    plain, lined = enlarged(image, 96), with_patches(image, 96, 4)
    assert plain.shape == (64, 96, channels) and lined.shape == (64, 96, max(channels, 3))
    differs = (lined != 255).any(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(differs.all(axis=1)), [31, 32])
    np.testing.assert_array_equal(np.flatnonzero(differs.all(axis=0)), [31, 32, 63, 64])
    assert not np.delete(np.delete(differs, [31, 32], 0), [31, 32, 63, 64], 1).any()
    assert (with_patches(image, 96, 12) == 255).all() and (image == 255).all()
    np.testing.assert_array_equal(plain[::8, ::8], image)


# --- The mode --------------------------------------------------------------------------------------


def test_without_gradio_the_mode_says_what_to_install(runs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "pdm_tf.page.layout", raising=False)
    status, said = run_mode(capsys, mode="page", run_dir=str(runs / "whole"))
    assert status == 2 and said.count("\n") == 1
    assert said.startswith("error: the page needs gradio") and "requirements-page.txt" in said
