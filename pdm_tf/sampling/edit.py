"""Editing an image: SDEdit changes all of it, a mask has a part of it inpainted."""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any, Optional

import numpy as np

from pdm_tf.config.words import check, leaves, setting


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """An image to edit, and how.

    Attributes:
      image: float32 (H, W, C) in [-1, 1]; or (N, H, W, C), one for each index, in turn.
      mask: bool (H, W), True where to inpaint (RePaint, Lugmayr et al., 2022); the other pixels stay.
      strength: sampling starts at the last respaced t <= strength * (T - 1), from the image diffused to it
        (SDEdit, Meng et al., 2022); with a mask and 1, from pure noise.
      jump_length, resamplings: see `repaint.resampling_indices`.
    """

    image: np.ndarray
    mask: Optional[np.ndarray] = None  # noqa: UP045 (its type is read in Python 3.9)
    strength: float = setting(
        0.5,
        "How much of an image to change: 0 keeps it, 1 (the default with a mask) replaces it.",
        least=0,
        most=1,
        of=("init_image",),
    )
    jump_length: int = setting(10, "Inpainting: steps of a section.", least=1, of=("mask",))
    resamplings: int = setting(10, "Inpainting: times to repeat each section.", least=1, of=("mask",))

    def __post_init__(self):
        check(self)

    def identity(self) -> dict[str, Any]:
        """All of it as JSON values, arrays as checksums."""
        arrays = {"image": self.image, "mask": self.mask}
        checksums = {
            name: zlib.crc32(np.ascontiguousarray(array))
            for name, array in arrays.items()
            if array is not None
        }
        return {**{name: getattr(self, name) for name in leaves(Edit)}, **checksums}
