"""The Vision Transformer trunk: that of Appendix D, which diverged, and one that does not; options apart.

The stable one: RMSNorm before each branch, scale, shift and gate from the timestep, starting at zero
(adaLN-Zero), a norm of q and k, rotary positions beside the fixed ones, SwiGLU, a narrow patch embedding, and
labels as tokens (Li & He, 2025, "Back to Basics"). Appendix D's: see `pdm_tf.config.presets`.
"""

from __future__ import annotations

from functools import partial

import tensorflow as tf

from pdm_tf.networks.layers import Head, Trunk, checkpointed, fold_in
from pdm_tf.networks.norms import normalization
from pdm_tf.networks.vit_layers import Attention, ClassTokens, FeedForward, ResidualBranch, rotation
from pdm_tf.stack import keras


class ViT(Trunk):
    """The trunk of `depth` blocks of attention and feed-forward, over all positions of a grid of any size.

    Args:
      grid: (height, width), for `describe` alone.
      config: `t_conditioning` and `t_gates` say where the timestep gives norms their scale and shift, and
        branches a gate (adaLN-Zero); with class_conditioning "gate" the label gates each branch, too.
    """

    kernel_size = 1

    def __post_init__(self):
        config = self.config
        dtype = self.dtype
        self.width = config.base_channels
        self.embedding_width = config.base_channels
        dense = partial(keras.layers.Dense, config.base_channels)
        initial_scale = config.depth**-0.5 if config.residual_scaling == "initial_weights" else 1.0
        branch = partial(ResidualBranch, config=config, dtype=dtype)
        everywhere = config.t_conditioning == "everywhere"
        once = config.t_conditioning == "once"
        self.blocks: list[tuple[ResidualBranch, ResidualBranch]] = []
        for number in range(1, config.depth + 1):
            attention = Attention(
                config.head_channels, config.qk_norm, initial_scale, dtype=dtype, name="attention"
            )
            feed_forward = FeedForward(config.feed_forward, initial_scale, dtype=dtype, name="feed_forward")
            self.blocks.append(
                (
                    branch(attention, t_conditional=everywhere, name=f"attention{number}"),
                    branch(feed_forward, t_conditional=not once, name=f"feed_forward{number}"),
                )
            )
        self._inject = {k: dense(dtype=dtype, name=f"inject{k}") for k in config.input_injections}
        self._t_once = dense(name="t_once") if once else None
        self._class_tokens = None
        if config.class_conditioning == "tokens":
            self._class_tokens = ClassTokens(config.class_tokens, dtype=dtype, name="class_tokens")

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """All Keras layers: those of the blocks, and then the optional ones."""
        optional = [*self._inject.values(), self._t_once, self._class_tokens]
        return [branch for block in self.blocks for branch in block] + [layer for layer in optional if layer]

    def make_stem(self, prefix: str = "") -> list[keras.layers.Layer]:
        """A linear map, of low rank if there is a bottleneck."""
        embed = keras.layers.Dense(self.width, name=f"{prefix}embed")
        if not self.config.bottleneck:
            return [embed]
        narrow = keras.layers.Dense(self.config.bottleneck, use_bias=False, name=f"{prefix}embed_narrow")
        return [narrow, embed]

    def make_head(self, values: int, prefix: str = "") -> Head:
        """A norm, with the timestep's scale and shift unless it comes once, and a linear map."""
        once = self.config.t_conditioning == "once"
        dense = partial(keras.layers.Dense, kernel_initializer="zeros")
        norm = normalization(self.config.norm, affine=once, name=f"{prefix}norm_out")
        modulation = None if once else dense(2 * self.width, name=f"{prefix}modulation_out")
        return Head(norm, dense(values, name=f"{prefix}project_out"), modulation)

    def __call__(self, h, embeddings, dropout_key=None, large=False) -> tf.Tensor:
        """As `Trunk.__call__`; any grid.

        A large patch has the rotary position of the first of its four small ones, as it has their fixed one.
        Large patches are 1 apart, as in a network of these alone, which may have begun this one.
        """
        _, height, width, channels = h.shape
        tokens = inputs = tf.reshape(h, [-1, height * width, channels])
        if self._t_once is not None:
            tokens += tf.cast(self._t_once(embeddings[0]), tokens.dtype)[:, None, :]
        extra = 0
        for number, block in enumerate(self.blocks, 1):
            if self._class_tokens is not None and number == self.config.class_tokens_from:
                tokens = self._class_tokens(tokens, embeddings[1])
                extra = self._class_tokens.count
            if number in self._inject:
                tokens += tf.pad(self._inject[number](inputs), [[0, 0], [extra, 0], [0, 0]])
            angles = None
            if self.config.rope:
                stride = 0.5 if self.config.patch_switch_t and not large else 1.0
                angles = rotation((height, width), extra, self.config.head_channels, stride)
            tokens = self._block(block, tokens, embeddings, angles, fold_in(dropout_key, number))
        return tf.reshape(tokens[:, extra:], [-1, height, width, channels])

    def _block(self, block, tokens, embeddings, angles, dropout_key) -> tf.Tensor:
        def compute(tokens, *embeddings):
            for number, branch in enumerate(block):
                key = fold_in(dropout_key, number)
                tokens = branch(tokens, *embeddings, dropout_key=key, angles=angles)
            return tokens

        return checkpointed(compute, self.gradient_checkpointing and block[0].built)(tokens, *embeddings)

    def describe(self) -> list[str]:
        """One line: tokens, channels, blocks and heads."""
        height, width = self.grid
        lines = [
            f"{height * width} tokens of {self.width} channels, {len(self.blocks)} blocks of "
            f"{self.width // self.config.head_channels} heads"
        ]
        if self._class_tokens is not None:
            lines.append(
                f"{self._class_tokens.count} class tokens from block {self.config.class_tokens_from} on"
            )
        return lines
