"""What the page does, without gradio: its pictures are those of --mode=sample, its refusals a sentence."""

import json
import sys
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

from pdm_tf import stack
from pdm_tf.commands.page import exempt_from_proxies
from pdm_tf.errors import UserError
from pdm_tf.images import write_png
from pdm_tf.page import studio as studio_module
from pdm_tf.page.studio import enlarged, mask_of, part_at, with_patches
from pdm_tf.run import RunFolder
from tests.in_process import run_mode
from tests.page.studios import model_of, studio_of, write_runs
from tests.tiny_runs import tiny_config, write_run

IMAGE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
MASK = np.zeros((16, 16), bool)
MASK[4:12, 2:9] = True


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs"), sampling__steps=(4,))


@pytest.fixture(scope="module")
def studio(runs):
    return studio_of(*(runs / name for name in ("whole", "low", "high", "grey")))


def last(drawing):
    *_, samples = drawing
    return samples


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def downloaded(samples, folder):
    """The files of samples, unpacked."""
    grid, pngs, npz = samples.files
    with zipfile.ZipFile(pngs) as file:
        file.extractall(folder / "pngs")
    return {**files_of(folder), "grid.png": grid.read_bytes(), "samples.npz": npz.read_bytes()}


GUIDED = {"sampler": "ddim", "eta": 0.5, "steps": "3,2", "guidance": 2.0}
INPAINTED = {"jump_length": 1, "resamplings": 2, "strength": 0.3, "sampler": "ddim"}


@pytest.mark.parametrize(
    ("title", "values", "labels", "seed", "count"),
    [
        ("whole", {}, [], 5, 18),
        pytest.param("low + high", GUIDED, [2, 0], 2, 2, marks=pytest.mark.slow),
        ("whole", INPAINTED, [1], 3, 2),
    ],
    ids=["two batches of all classes", "guided experts", "inpainted"],
)
def test_a_picture_of_the_page_is_that_of_the_command(
    title, values, labels, seed, count, studio, runs, tmp_path, capsys
):
    image = mask = None
    flags = {**values, "labels": [["cat", "dog", "owl"][label] for label in labels]}
    if values is INPAINTED:
        image = IMAGE
        mask = MASK
        flags |= {"init_image": str(tmp_path / "image.png"), "mask": str(tmp_path / "mask.png")}
        flags |= {"strength": 1.0, "sampler": "ancestral"}
        write_png(tmp_path / "image.png", image)
        write_png(tmp_path / "mask.png", mask[..., None] * np.uint8(255))
    model = model_of(studio, title)
    samples = last(studio.draw(model, values, labels, seed, count, image, mask))
    run_dir = ",".join(str(runs / part) for part in title.split(" + "))
    status, output = run_mode(
        capsys,
        mode="sample",
        strategy="cpu",
        run_dir=run_dir,
        seed=seed,
        num_samples=count,
        save_pngs=True,
        out=str(tmp_path / "command"),
        **flags,
    )
    assert status == 0, output
    (tmp_path / "command" / "samples.json").unlink()
    assert downloaded(samples, tmp_path / "page") == files_of(tmp_path / "command")
    with np.load(tmp_path / "command" / "samples.npz") as file:
        np.testing.assert_array_equal(samples.images, file["arr_0"])


def test_pictures_are_seen_as_they_sharpen_and_leaving_ends_the_work(studio, monkeypatch):
    monkeypatch.setattr(studio_module, "FRAME_SECONDS", 0.0)
    model = model_of(studio, "whole")
    seen = list(studio.draw(model, {"steps": 3}, [0], 0, 18))
    assert seen[0].images.shape == (18, 16, 16, 3) and (seen[0].images == 128).all()
    steps = [samples.status.partition(", ")[2].rpartition(",")[0] for samples in seen[1:-1]]
    assert steps == [f"step {step} of 3" for _ in range(2) for step in (1, 2, 3)]
    assert seen[1].status.startswith("pictures 1 to 16 of 18, ")
    assert (seen[3].images[16:] == 128).all() and (seen[3].images[:16] == seen[-1].images[:16]).all()
    assert (seen[1].images[:16] != seen[3].images[:16]).any()
    assert seen[-1].status.startswith("18 pictures in ") and seen[-1].status.endswith(": 3 steps")
    assert len(seen[-1].files) == 3


def test_graphs_of_earlier_settings_are_not_kept(studio):
    def registered(steps):
        last(studio.draw(model_of(studio, "whole"), {"steps": steps}, [0]))
        return len([name for name in stack.ops.gradient_registry._registry if name.startswith("Custom")])

    assert registered(2) == registered(3) > 0


def test_an_edit_without_a_class_is_of_the_null_label(studio):
    model = model_of(studio, "whole")
    drawn = [last(studio.draw(model, {}, labels, 0, 2, IMAGE)).images for labels in ([], [3], [0, 1])]
    assert model.denoiser.null_label == 3
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_closing_ends_a_drawing_and_leaves_no_files(runs):
    studio = studio_of(runs / "grey")
    (model,) = studio.models
    grid = last(studio.draw(model, {"steps": 1})).files[0]
    drawing = studio.draw(model, {"steps": 9})
    next(drawing)
    studio.close()
    with pytest.raises(UserError, match="the page is closed"):
        next(drawing)
    assert not grid.exists()


def test_a_run_with_two_patch_sizes_is_one_model_with_the_patches_that_work_at_t(studio, tmp_path):
    config = tiny_config(network__patch_switch_t=400, network__channel_multipliers=(1, 1))
    page = studio_of(write_run(tmp_path / "two", config))
    assert page.comparable == page.models
    small = page.models[0].config.network.patch_size
    sizes = [part_at(page.models[0], t).patch_size for t in (0, 399, 400, 999)]
    assert sizes == [small, small, 2 * small, 2 * small]
    sizes = [part_at(model_of(studio, "low + high"), t).patch_size for t in (0, 399, 400, 999)]
    assert sizes == [2, 2, 8, 8]


@pytest.mark.parametrize(
    ("title", "values", "seed", "count", "message"),
    [
        ("whole", {}, 0, 0, "Pictures: a whole number from 1 to 100"),
        ("grey", {"guidance": 2.0}, 0, 1, "this model has no classes to guide"),
        ("whole", {"strength": 1.5}, 0, 1, "Strength: use a number from 0 to 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(studio, title, values, seed, count, message):
    with pytest.raises(UserError) as caught:
        next(studio.draw(model_of(studio, title), values, (), seed, count))
    assert message in str(caught.value) and "--" not in str(caught.value)


# --- Pictures in and out ---------------------------------------------------------------------------


def strokes(*boxes, size=(96, 96)):
    layer = np.zeros((*size, 4), np.uint8)
    for top, left, bottom, right in boxes:
        layer[top:bottom, left:right] = (200, 0, 200, 255)
    return layer


def test_a_brush_makes_the_mask_of_the_pixels_that_it_covers():
    expected = np.zeros((16, 16), bool)
    expected[2:4, 5] = True
    np.testing.assert_array_equal(mask_of([strokes((12, 30, 24, 36))], (16, 16, 3)), expected)
    np.testing.assert_array_equal(mask_of([strokes((12, 30, 24, 33))], (16, 16, 3)), expected)  # half of each
    two = [strokes((12, 30, 24, 36)), strokes((0, 0, 6, 6))]
    expected[0, 0] = True
    np.testing.assert_array_equal(mask_of(two, (16, 16, 3)), expected)
    assert mask_of([strokes((0, 0, 50, 30), size=(50, 60))], (10, 12, 1)).sum() == 60
    assert mask_of([], (16, 16, 3)) is None
    assert mask_of([strokes((12, 30, 24, 32))], (16, 16, 3)) is None


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


def test_without_gradio_the_mode_says_what_to_install(runs, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "pdm_tf.page.layout", raising=False)
    status, output = run_mode(capsys, mode="page", run_dir=str(runs / "whole"))
    assert status == 2 and output.count("\n") == 1
    assert output.startswith("error: the page needs gradio") and "requirements-page.txt" in output


def test_no_proxy_comes_between_gradio_and_the_page(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")
    exempt_from_proxies("10.1.2.3")
    for host in ("127.0.0.1:7860", "localhost:7860", "10.1.2.3:7860", "example.org"):
        assert urllib.request.proxy_bypass_environment(host)


def test_runs_with_a_log_are_shown_beside_each_other(runs, studio):
    assert studio.curves() is None
    values = ({"validation/simple_loss": 3.0}, {"validation/FD-x": 200.0}, {"loss": 1.0})
    for name, scores in zip(("whole", "low", "high"), values):
        log = RunFolder(runs / name).metrics_file
        log.parent.mkdir()
        log.write_text("".join(json.dumps({"step": step, **scores}) + "\n" for step in (1, 2)))
    with Image.open(studio.curves()) as picture:
        two_panels = picture.size
    RunFolder(runs / "low").metrics_file.unlink()
    with Image.open(studio.curves()) as picture:
        assert picture.height == two_panels[1] and picture.width * 2 == two_panels[0]
