"""What the tools cut out and how they resize it, by hand and by what must not change."""

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


@pytest.mark.parametrize("size", [(256, 256), (32, 80), (80, 32), (7, 7)])
@pytest.mark.parametrize("source", [(300, 400), (1100, 513), (20, 31)])
def test_imagenet_geometry_keeps_the_centre_and_the_aspect(size, source):
    height, width = source
    row, column = np.mgrid[:height, :width] + 0.5
    ramps = np.stack([row / height, column / width, 0 * row], -1) * 255
    found = geometry.resize_then_crop(Image.fromarray(ramps.astype(np.uint8)), *size)
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
