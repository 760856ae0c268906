"""Every kind of image file that the raw archives hold becomes the right RGB pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data_tools import images
from tests.data import fixtures

PIXELS = fixtures.natural_image(3, 24, 36)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def rgb(data: bytes, background: str = "white") -> np.ndarray:
    return np.asarray(images.to_rgb(images.decode(data), background)).astype(int)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "WEBP", "JPEG"])
def test_formats(image_format):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    options = options.get(image_format, {})
    found = rgb(fixtures.encode(PIXELS, image_format, **options))
    assert np.abs(found - PIXELS).mean() < (6 if image_format == "JPEG" else 1e-9)


def test_animated_gif_gives_its_first_frame():
    frames = [Image.new("P", (5, 4), colour) for colour in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (rgb(data) == [255, 0, 0]).all()


def test_greyscale_and_sixteen_bits():
    grey = PIXELS[..., 0]
    assert (rgb(fixtures.encode(grey)) == grey[..., None]).all()
    sixteen = grey.astype(np.uint16) * 257
    assert (rgb(fixtures.encode(sixteen)) == grey[..., None]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
@pytest.mark.parametrize("background, expected", [("white", 255), ("#102030", (16, 32, 48))])
def test_transparency_shows_the_background(mode, background, expected):
    if mode in ("P", "RGB"):  # one colour of the palette, or of all, is transparent
        image = Image.new(mode, (4, 2), 0)
        image.putpixel((0, 0), 1 if mode == "P" else (255, 0, 0))
        if mode == "P":
            image.putpalette([0, 0, 0, 255, 0, 0])
        data = saved(image, "PNG", transparency=0 if mode == "P" else (0, 0, 0))
        assert (rgb(data, background)[0, 0] == [255, 0, 0]).all()
    else:
        image = Image.new("RGBA", (4, 2), (255, 0, 0, 0)).convert(mode)
        data = saved(image, "PNG")
    assert (rgb(data, background)[1, 3] == expected).all()


def test_half_transparent_pixels_are_mixed():
    data = saved(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG")
    assert np.abs(rgb(data, "black") - [128, 0, 0]).max() <= 1


def test_cmyk_jpeg():
    found = rgb(fixtures.cmyk_jpeg(PIXELS))
    assert np.abs(found - PIXELS).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    upright = Image.fromarray(PIXELS)
    # The transformation that a camera's sensor did, for the viewer to undo.
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if inverse is None else upright.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = images.upright(images.decode(saved(stored, "PNG", exif=exif)))
    np.testing.assert_array_equal(np.asarray(found), PIXELS)


def test_lsun_geometry_by_hand():
    # 4 x 7 -> the middle 4 x 4 -> 2 x 2, each the mean of four pixels.
    pixels = np.arange(28, dtype=np.uint8).reshape(4, 7)[..., None].repeat(3, 2) * 8
    found = np.asarray(images.square_then_box(Image.fromarray(pixels), 2))
    middle = pixels[:, 1:5].astype(float)
    expected = middle.reshape(2, 2, 2, 2, 3).mean((1, 3))
    np.testing.assert_allclose(found, expected, atol=0.51)


@pytest.mark.parametrize("size", [(256, 256), (32, 80), (80, 32), (7, 7)])
@pytest.mark.parametrize("source", [(300, 400), (1100, 513), (20, 31)])
def test_imagenet_geometry_keeps_the_centre_and_the_aspect(size, source):
    height, width = source
    row, column = np.mgrid[:height, :width] + 0.5
    ramps = np.stack([row / height, column / width, 0 * row], -1) * 255
    found = images.resize_then_crop(Image.fromarray(ramps.astype(np.uint8)), *size)
    assert (found.height, found.width) == size
    found = np.asarray(found).astype(float) / 255
    # Both ramps pass 1/2 at the centre, with the slope of one common scale.
    scale = max(size[0] / height, size[1] / width)
    for axis, (target, original) in enumerate(zip(size, source)):
        line = found[:, :, axis].mean(1 - axis)
        step = 1 / (original * scale)
        assert abs(line.mean() - 0.5) < 1.5 * step + 0.01
        if target > 16:
            slope = np.polyfit(np.arange(target), line, 1)[0]
            assert slope == pytest.approx(step, rel=0.08)


def test_encodings():
    image = Image.fromarray(PIXELS)
    png = images.encode(image, "png", png_level=3, jpeg_quality=1)
    assert (rgb(png) == PIXELS).all()
    jpeg = images.encode(image, "jpeg", png_level=3, jpeg_quality=95)
    assert jpeg[:2] == b"\xff\xd8" and np.abs(rgb(jpeg) - PIXELS).mean() < 3


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_cut_files_are_refused(image_format):
    data = fixtures.encode(PIXELS, image_format)
    with pytest.raises(images.UNREADABLE):
        images.decode(data[: len(data) // 2])
    with pytest.raises(images.UNREADABLE):
        images.decode(b"")
