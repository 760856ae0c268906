"""Images out of the program and back in."""

import io

import numpy as np
import pytest
from PIL import Image

from flags.errors import UserError
from pdm_tf.images import (
    from_uint8,
    image_grid,
    read_image,
    read_mask,
    to_uint8,
    write_gif,
    write_png,
    write_samples,
)

RANDOM = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)


def test_every_byte_survives_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    floats = from_uint8(levels)
    assert floats.dtype == np.float32 and floats[0] == -1.0 and floats[255] == 1.0
    np.testing.assert_array_equal(to_uint8(floats), levels)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 3.0, 1.0 / 255.0])), [0, 255, 128])


def test_a_grid_holds_the_images_in_reading_order():
    grid = image_grid(RANDOM, columns=2, gap=1)
    assert grid.shape == (3 * 7 + 1, 2 * 5 + 1, 3)
    np.testing.assert_array_equal(grid[8:14, 6:10], RANDOM[3])
    assert (grid[15:, 6:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_and_image_are_inverses(tmp_path, channels):
    image = np.concatenate([RANDOM, RANDOM], axis=-1)[0, ..., :channels]
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (6, 4, channels)), image)


def test_transparent_parts_become_white(tmp_path):
    pixels = np.zeros((6, 4, 4), np.uint8)
    pixels[:3, :, 3] = 255
    write_png(tmp_path / "a.png", pixels)
    image = read_image(tmp_path / "a.png", (6, 4, 3))
    assert (image[:3] == 0).all() and (image[3:] == 255).all()


def test_light_parts_of_a_mask_are_painted(tmp_path):
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[2] = 200
    write_png(tmp_path / "a.png", pixels)
    mask = read_mask(tmp_path / "a.png", (6, 4, 3))
    assert mask.shape == (6, 4) and mask[2].all() and mask.sum() == 4


def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path):
    write_png(tmp_path / "black.png", np.zeros((6, 4, 3), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    write_png(tmp_path / "cut.png", RANDOM[0])
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:80])
    refusals = {
        lambda: read_image(tmp_path / "none.png", (6, 4, 3)): "none.png does not exist",
        lambda: read_image(tmp_path / "text.png", (6, 4, 3)): "text.png cannot be read as an image",
        lambda: read_image(tmp_path / "cut.png", (6, 4, 3)): "cut.png cannot be read as an image",
        lambda: read_image(tmp_path / "black.png", (8, 16, 3)): "4 pixels wide and 6 high: resize it to the "
        "model's 16 x 8",
        lambda: read_mask(tmp_path / "black.png", (4, 6, 3)): "resize it to the model's 6 x 4",
        lambda: read_mask(tmp_path / "black.png", (6, 4, 3)): "make white what is to be painted",
        lambda: read_image(tmp_path / "black.png", (6, 4, 5)): "5 channels cannot edit image files",
    }
    for read, message in refusals.items():
        with pytest.raises(UserError) as caught:
            read()
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_gif_plays_its_frames_in_order(tmp_path):
    frames = [np.full((6, 4, 3), level, np.uint8) for level in (0, 120, 255)]
    write_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames == 3
        for i, frame in enumerate(frames):
            file.seek(i)
            np.testing.assert_array_equal(np.asarray(file.convert("RGB")), frame)


@pytest.mark.parametrize("labels", [None, np.arange(5, dtype=np.int32)])
def test_streamed_samples_are_the_file_that_numpy_writes(tmp_path, labels):
    write_samples(tmp_path / "a.npz", iter([RANDOM[:2], RANDOM[2:4], RANDOM[4:]]), RANDOM.shape, labels)
    whole = io.BytesIO()
    np.savez(whole, **({"arr_0": RANDOM} if labels is None else {"arr_0": RANDOM, "arr_1": labels}))
    assert (tmp_path / "a.npz").read_bytes() == whole.getvalue()


def test_too_few_samples_leave_no_file(tmp_path):
    with pytest.raises(AssertionError, match="2 images came, and 5 were promised"):
        write_samples(tmp_path / "a.npz", iter([RANDOM[:2]]), RANDOM.shape, None)
    assert not list(tmp_path.iterdir())
