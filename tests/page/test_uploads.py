"""Uploads: any picture is fitted to the model, all else is refused in one sentence."""

import io

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
COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def fitted(tmp_path, data, shape=SHAPE):
    (tmp_path / "a picture").write_bytes(data)
    return read_fitted(tmp_path / "a picture", shape, LIMIT)


def test_a_picture_of_the_model_s_size_comes_as_it_is(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    found = fitted(tmp_path, encoded(image))
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(found, read_image(tmp_path / "a picture", SHAPE))


def test_any_other_picture_is_turned_upright_cut_and_resized(tmp_path):
    wide = np.zeros((60, 200, 3), np.uint8)
    wide[:, 55:145] = QUADRANTS
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    files = [encoded(QUADRANTS, "BMP"), encoded(wide), encoded(np.rot90(QUADRANTS), exif=exif)]
    for data in files:
        found = fitted(tmp_path, data)
        corners = np.stack([found[y, x] for y, x in ((2, 2), (2, -3), (-3, 2), (-3, -3))]).astype(int)
        assert np.abs(corners - COLOURS).max() <= 2
    assert (fitted(tmp_path, encoded(np.zeros((16, 24, 4), np.uint8))) == 255).all()  # transparent


def test_what_is_no_picture_or_too_large_is_refused_in_a_sentence(tmp_path):
    for data, message in (
        (b"hello", "a picture cannot be read as an image (its bytes are of no known image format): choose"),
        (encoded(np.zeros((1001, 1000), np.uint8)), "a picture has more than 1 megapixels: make it smaller"),
    ):
        with pytest.raises(UserError) as caught:
            fitted(tmp_path, data)
        assert message in str(caught.value) and str(tmp_path) not in str(caught.value)
