"""What people upload: any picture is fitted to the model, all else is refused in one sentence."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pdm_tf.errors import UserError
from pdm_tf.images import read_fitted, read_image

SHAPE = (16, 24, 3)
LIMIT = 10**6
QUADRANTS = np.zeros((60, 90, 3), np.uint8)  # red, green / blue, white
QUADRANTS[:30, :45, 0] = QUADRANTS[:30, 45:, 1] = QUADRANTS[30:, :45, 2] = 255
QUADRANTS[30:, 45:] = 255


def encoded(image, form="PNG", **how):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **how)
    return buffer.getvalue()


def fitted(tmp_path, data, name="a picture.png", shape=SHAPE):
    (tmp_path / name).write_bytes(data)
    return read_fitted(tmp_path / name, shape, LIMIT)


def corners(image):
    """The colours near the corners, of which filters may change a level or two."""
    found = np.stack([image[y, x] for y, x in ((2, 2), (2, -3), (-3, 2), (-3, -3))]).astype(int)
    pure = np.where(found > 127, 255, 0)
    assert np.abs(found - pure).max() <= 2
    return pure.tolist()


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


def test_a_picture_of_the_model_s_size_comes_as_it_is(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    found = fitted(tmp_path, encoded(image))
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(found, read_image(tmp_path / "a picture.png", SHAPE))
    grey = fitted(tmp_path, encoded(image[..., 0]), shape=(16, 24, 1))
    np.testing.assert_array_equal(grey[..., 0], image[..., 0])


@pytest.mark.parametrize("form, name", [("PNG", "a.png"), ("BMP", "photo"), ("WEBP", "wrong ending.jpg")])
def test_any_format_is_resized_whatever_its_name(tmp_path, form, name):
    how = {"lossless": True} if form == "WEBP" else {}
    assert corners(fitted(tmp_path, encoded(QUADRANTS, form, **how), name)) == [RED, GREEN, BLUE, WHITE]


def test_the_middle_of_another_shape_is_taken(tmp_path):
    image = np.zeros((60, 200, 3), np.uint8)
    image[:, 55:145] = QUADRANTS
    assert corners(fitted(tmp_path, encoded(image))) == [RED, GREEN, BLUE, WHITE]
    assert fitted(tmp_path, encoded(np.full((1, 900, 3), 7, np.uint8))).tolist() == np.full(SHAPE, 7).tolist()


def test_a_turned_photograph_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    stored = np.rot90(QUADRANTS)
    found = fitted(tmp_path, encoded(stored, "PNG", exif=exif))
    assert corners(found) == [RED, GREEN, BLUE, WHITE]


def test_sixteen_bits_of_grey_are_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 16 * 24).reshape(16, 24).astype(np.uint16)
    found = fitted(tmp_path, encoded(levels))
    np.testing.assert_array_equal(found, np.repeat(levels[..., None] >> 8, 3, axis=-1))


def test_transparent_parts_are_white(tmp_path):
    image = np.zeros((16, 24, 4), np.uint8)
    assert (fitted(tmp_path, encoded(image)) == 255).all()


def huge_png():
    """The head of a PNG of 40,000 x 40,000 pixels: who decoded it would need 4.8 GB."""
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    "data, message",
    [
        (b"hello", "evil.png cannot be read as an image (its bytes are of no known image format): choose"),
        (b"", "evil.png cannot be read as an image (its bytes are of no known image format): choose"),
        (encoded(QUADRANTS)[:-40], "evil.png cannot be read as an image ("),
        (huge_png(), "evil.png has more than 1 megapixels: make it smaller, and try again"),
        (encoded(np.zeros((1000, 1001, 3), np.uint8)), "evil.png has more than 1 megapixels"),
        (encoded(np.zeros((4, 4), np.float32), "TIFF"), "its levels are floating-point numbers"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(tmp_path, data, message):
    with pytest.raises(UserError) as caught:
        fitted(tmp_path, data, "evil.png")
    assert message in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_a_picture_that_is_gone_or_of_a_model_that_has_none(tmp_path):
    with pytest.raises(UserError, match=r"gone.png cannot be read"):
        read_fitted(tmp_path / "gone.png", SHAPE, LIMIT)
    with pytest.raises(UserError, match="a model of 5 channels cannot edit image files"):
        fitted(tmp_path, encoded(QUADRANTS), shape=(16, 24, 5))
