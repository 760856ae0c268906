"""The U-Net trunk: ADM's, with the paper's changes (Appendix C)."""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from pdm_tf.networks.layers import (
    Head,
    ResBlock,
    SelfAttention,
    Trunk,
    checkpointed,
    fold_in,
    swish,
    upsample,
)
from pdm_tf.networks.norms import normalization
from pdm_tf.stack import keras

# Also the order of the weights, in optimizers and files; within a kind it is that of the stages.
KINDS = ("encoder", "down", "middle", "decoder", "up")


class Stage(NamedTuple):
    """A residual block, with or without attention after it, or a convolution.

    The output of an "encoder" block or a "down" convolution is kept as a skip connection, a "decoder" block
    takes the newest of these beside its input, an "up" convolution has its input upsampled.
    """

    kind: str
    level: int
    layer: ResBlock | keras.layers.Conv2D
    attention: SelfAttention | None = None


class UNet(Trunk):
    """The trunk that works on its grid, and on grids of half that size, of a quarter, and so on.

    Args:
      grid: (height, width), both of which divide by 2^(levels - 1).
      config: `channel_multipliers` has one number for each level; a decoder level has one block more than the
        `blocks_per_level` of an encoder level; with class_conditioning "gate" each residual branch has a
        sigmoid gate, by the label's embedding; `local` has RMSNorm and no attention, so that a place depends
        on its surroundings alone, and the same weights work on crops and on the whole image.
    """

    kernel_size = 3

    def __post_init__(self):
        config = self.config
        widths = [round(config.base_channels * multiplier) for multiplier in config.channel_multipliers]
        last = len(widths) - 1
        self.width = widths[0]
        self.embedding_width = widths[-1]
        gated = config.class_conditioning == "gate"
        self._norm = "rms" if config.local else "group"
        block = partial(ResBlock, dropout=config.dropout, gated=gated, norm=self._norm, dtype=self.dtype)
        conv = partial(keras.layers.Conv2D, kernel_size=3, padding="same", dtype=self.dtype)
        attention = partial(SelfAttention, config.head_channels, dtype=self.dtype)

        def attention_after(name: str, level: int) -> SelfAttention | None:
            listed = max(self._grid_of(level)) in config.attention_resolutions
            return attention(name=f"{name}_attention") if listed else None

        self.stages: list[Stage] = []

        def add(*stage) -> None:
            self.stages.append(Stage(*stage))

        for level, width in enumerate(widths):
            for b in range(config.blocks_per_level):
                name = f"encoder{level}_{b}"
                add("encoder", level, block(width, name=name), attention_after(name, level))
            if level < last:
                add("down", level, conv(widths[level + 1], strides=2, name=f"down{level}"))
        middle_attention = None if config.local else attention(name="middle_attention")
        add("middle", last, block(widths[last], name="middle_in"), middle_attention)
        add("middle", last, block(widths[last], name="middle_out"))
        for level, width in reversed(list(enumerate(widths))):
            for b in range(config.blocks_per_level + 1):
                name = f"decoder{level}_{b}"
                add("decoder", level, block(width, name=name), attention_after(name, level))
            if level > 0:
                add("up", level, conv(widths[level - 1], name=f"up{level}"))

    def _grid_of(self, level: int) -> tuple[int, int]:
        return self.grid[0] // 2**level, self.grid[1] // 2**level

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """All Keras layers, in the order of `KINDS`."""
        stages = sorted(self.stages, key=lambda stage: KINDS.index(stage.kind))
        layers = [layer for stage in stages for layer in (stage.layer, stage.attention)]
        return [layer for layer in layers if layer is not None]

    def make_stem(self, prefix: str = "") -> list[keras.layers.Layer]:
        """The first convolution."""
        return [keras.layers.Conv2D(self.config.base_channels, 3, padding="same", name=f"{prefix}conv_in")]

    def make_head(self, values: int, prefix: str = "") -> Head:
        """Norm swish Conv3x3."""
        norm = normalization(self._norm, affine=True, name=f"{prefix}norm_out")
        conv = partial(keras.layers.Conv2D, padding="same", kernel_initializer="zeros")
        return Head(norm, conv(values, 3, name=f"{prefix}conv_out"), activation=swish)

    def __call__(self, h, embeddings, dropout_key=None, large=False) -> tf.Tensor:
        """As `Trunk.__call__`.

        Large patches are on the second level's grid. Of the first level they pass the shortcuts of the blocks
        alone, and its two convolutions, down and up, which change the width and not the size: no skip is
        missing anywhere.
        """
        skips = [h]
        blocks = itertools.count()
        for stage in self.stages:
            passed = large and stage.level == 0
            if stage.kind == "down":
                h = unstrided(stage.layer, h) if passed else stage.layer(h)
            elif stage.kind == "up":
                h = stage.layer(h if large and stage.level == 1 else upsample(h))
            else:
                if stage.kind == "decoder":
                    h = tf.concat([h, skips.pop()], axis=-1)
                key = fold_in(dropout_key, next(blocks))
                h = stage.layer.shortcut(h) if passed else self._block(stage, h, embeddings, key)
            if stage.kind in ("encoder", "down"):
                skips.append(h)
        return h

    def _block(self, stage: Stage, h, embeddings, dropout_key) -> tf.Tensor:
        def compute(h, *embeddings):
            h = stage.layer(h, *embeddings, dropout_key=dropout_key)
            return h if stage.attention is None else stage.attention(h)

        return checkpointed(compute, self.gradient_checkpointing and stage.layer.built)(h, *embeddings)

    def describe(self) -> list[str]:
        """One line for each level: height, width, channels, and whether it has attention."""
        levels = {stage.level: stage for stage in self.stages if stage.kind == "encoder"}
        return [
            f"level {level}: {(*self._grid_of(level), stage.layer.channels)}"
            + ("" if stage.attention is None else ", attention")
            for level, stage in levels.items()
        ]


def unstrided(conv: keras.layers.Conv2D, h: tf.Tensor) -> tf.Tensor:
    """The result of a strided convolution, whose weights exist, at every position."""
    h = tf.cast(h, conv.compute_dtype)
    h = tf.nn.conv2d(h, tf.cast(conv.kernel, h.dtype), 1, "SAME")
    return tf.nn.bias_add(h, tf.cast(conv.bias, h.dtype))
