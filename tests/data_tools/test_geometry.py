"""The tools' crops and resizes, by hand and by what must not change."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from data_tools import geometry


def test_lsun_geometry_by_hand():
    # 4 x 7 -> the middle 4 x 4 -> 2 x 2, each the mean of four pixels.
    pixels = np.arange(28, dtype=np.uint8).reshape(4, 7)[..., None].repeat(3, 2) * 8
    found = np.asarray(geometry.square_then_box(Image.fromarray(pixels), 2))
    middle = pixels[:, 1:5].astype(float)
    expected = middle.reshape(2, 2, 2, 2, 3).mean((1, 3))
    np.testing.assert_allclose(found, expected, atol=0.51)


@pytest.mark.parametrize("height, width", [(1, 3000), (65000, 1)])
def test_of_a_line_the_middle_alone_is_resized(monkeypatch, height, width):
    """Resized before it is cropped, a line of 65,000 pixels would take 200 GB."""
    resize, sizes = Image.Image.resize, []

    def noted(image, size, *arguments, **named):
        sizes.append(size)
        return resize(image, size, *arguments, **named)

    monkeypatch.setattr(Image.Image, "resize", noted)
    line = Image.new("RGB", (width, height), "black")
    line.paste("white", (width // 2, 0, width, height) if width > 1 else (0, height // 2, 1, height))
    found = np.asarray(geometry.resize_then_crop(line, 1024, 1024))
    assert found.shape == (1024, 1024, 3) and sizes == [(1024, 1024)]
    halves = np.split(found, 2, axis=1 if width > 1 else 0)
    assert halves[0].mean() < 80 and halves[1].mean() > 175  # one pixel each, interpolated
