"""The Vision Transformer trunk: that of Appendix D, which diverged, and one that does not; options apart.

The stable one: RMSNorm before each branch, scale, shift and gate from the timestep, starting at zero
(adaLN-Zero), a norm of q and k, rotary positions beside the fixed ones, SwiGLU, a narrow patch embedding, and
labels as tokens (Li & He, 2025, "Back to Basics"). Appendix D's: see `pdm_tf.config.presets`.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.networks.layers import fold_in
from pdm_tf.networks.vit_layers import (
    Attention,
    ClassTokens,
    FeedForward,
    ResidualBranch,
    normalization,
    rotation,
)
from pdm_tf.stack import keras


class ViT:
    """A trunk of `depth` blocks of attention and feed-forward, over all places of its grid, or of any other.

    Args:
      grid: (height, width); any.
      base_channels: channels of a token, from end to end.
      depth: blocks.
      head_channels: channels of an attention head.
      norm: "rms", "layer" or "group" (32 groups).
      norm_place: "before" or "after" the branch's residual connection.
      t_conditioning: where the norms' scale and shift come from the timestep: "everywhere",
        "feed_forward" alone, or nowhere, the timestep being added to the tokens "once".
      t_gates: where they do, it gates the branch too (adaLN-Zero).
      residual_scaling: 1/sqrt(depth) on the "initial_weights" of a branch's last layer, on what the "branch"
        gives, or "none".
      input_injections: the blocks, from 1, before which a projection of the trunk's input is added.
      qk_norm: each head's q and k are normed.
      rope: q and k are turned by their place.
      feed_forward: "gelu" or "swiglu".
      bottleneck: a patch is projected to so many numbers first; 0: at once.
      class_tokens, class_tokens_from: with class_conditioning "tokens", how many of the label's tokens there
        are, and the block, from 1, before which they come.
      dropout: rate of what each branch gives.
      class_conditioning: with "gate" the label gates each branch.
      dtype: policy of projections and attention.
      gradient_checkpointing: keep only the inputs of blocks for the backward pass.
    Raises:
      UserError: the channels do not divide.
    """

    kernel_size = 1

    def __init__(
        self,
        grid: tuple[int, int],
        base_channels: int,
        *,
        depth: int,
        head_channels: int,
        norm: str = "rms",
        norm_place: str = "before",
        t_conditioning: str = "everywhere",
        t_gates: bool = True,
        residual_scaling: str = "none",
        input_injections: Sequence[int] = (),
        qk_norm: bool = True,
        rope: bool = True,
        feed_forward: str = "swiglu",
        bottleneck: int = 0,
        class_tokens: int = 8,
        class_tokens_from: int = 1,
        dropout: float = 0.0,
        class_conditioning: str = "none",
        dtype: str | keras.mixed_precision.Policy = "float32",
        gradient_checkpointing: bool = False,
    ):
        if base_channels % head_channels or head_channels % 4:
            raise UserError(
                f"a ViT's base_channels={base_channels} must divide by head_channels={head_channels}, and "
                "those by 4"
            )
        self._grid, self._head_channels, self._rope, self._gradient_checkpointing = (
            grid,
            head_channels,
            rope,
            gradient_checkpointing,
        )
        self._norm, self._t_conditioning, self._bottleneck = norm, t_conditioning, bottleneck
        self.width = self.embedding_width = base_channels
        scale, dense = depth**-0.5, keras.layers.Dense
        initial_scale = scale if residual_scaling == "initial_weights" else 1.0

        def branch(inner, name: str, t_conditional: bool) -> ResidualBranch:
            return ResidualBranch(
                inner, norm=norm, norm_place=norm_place, t_conditional=t_conditional, t_gate=t_gates,
                label_gate=class_conditioning == "gate", dropout=dropout, dtype=dtype, name=name,
                factor=scale if residual_scaling == "branch" else 1.0,
            )  # fmt: skip

        self.blocks: list[tuple[ResidualBranch, ResidualBranch]] = []
        for number in range(1, depth + 1):
            attention = Attention(head_channels, qk_norm, initial_scale, dtype=dtype, name="attention")
            each = FeedForward(feed_forward, initial_scale, dtype=dtype, name="feed_forward")
            self.blocks.append((
                branch(attention, f"attention{number}", t_conditioning == "everywhere"),
                branch(each, f"feed_forward{number}", t_conditioning != "once"),
            ))  # fmt: skip
        self._inject = {k: dense(base_channels, dtype=dtype, name=f"inject{k}") for k in input_injections}
        self._t_once = dense(base_channels, name="t_once") if t_conditioning == "once" else None
        self._class_tokens, self._class_tokens_from = None, class_tokens_from
        if class_conditioning == "tokens":
            self._class_tokens = ClassTokens(class_tokens, dtype=dtype, name="class_tokens")

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """All Keras layers: the blocks, and then what some ViTs have beside them."""
        beside = [*self._inject.values(), self._t_once, self._class_tokens]
        return [branch for block in self.blocks for branch in block] + [layer for layer in beside if layer]

    def make_stem(self, prefix: str = "") -> list[keras.layers.Layer]:
        """A linear map, by way of a few numbers if there is a bottleneck."""
        narrow = [keras.layers.Dense(self._bottleneck, use_bias=False, name=f"{prefix}embed_narrow")]
        return [*(narrow if self._bottleneck else []), keras.layers.Dense(self.width, name=f"{prefix}embed")]

    def make_head(self, values: int, prefix: str = "") -> AdaptiveHead:
        """See `Trunk`."""
        return AdaptiveHead(self.width, values, self._norm, self._t_conditioning != "once", prefix)

    def __call__(
        self,
        h: tf.Tensor,
        embeddings: Sequence[tf.Tensor],
        dropout_key: tf.Tensor | None = None,
        large: bool = False,
    ) -> tf.Tensor:
        """Walks through the blocks, whose grid is that of h; see `Trunk`.

        A large patch's rotary place is that of the first of its four, as its fixed one is: what is as far
        apart in the image is as far apart for attention.
        """
        _, height, width, channels = h.shape
        tokens = inputs = tf.reshape(h, [-1, height * width, channels])
        if self._t_once is not None:
            tokens += tf.cast(self._t_once(embeddings[0]), tokens.dtype)[:, None, :]
        extra = 0
        for number, block in enumerate(self.blocks, 1):
            if self._class_tokens is not None and number == self._class_tokens_from:
                tokens, extra = self._class_tokens(tokens, embeddings[1]), self._class_tokens.count
            if number in self._inject:
                tokens += tf.pad(self._inject[number](inputs), [[0, 0], [extra, 0], [0, 0]])
            angles = None
            if self._rope:
                angles = rotation((height, width), extra, self._head_channels, 2 if large else 1)
            tokens = self._block(block, tokens, embeddings, angles, fold_in(dropout_key, number))
        return tf.reshape(tokens[:, extra:], [-1, height, width, channels])

    def _block(self, block, tokens, embeddings, angles, dropout_key) -> tf.Tensor:
        def compute(tokens, *embeddings):
            for number, branch in enumerate(block):
                key = fold_in(dropout_key, number)
                tokens = branch(tokens, *embeddings, dropout_key=key, angles=angles)
            return tokens

        # As in the U-Net: the first call makes weights, which a recomputation must not.
        gradient_checkpointing = self._gradient_checkpointing and block[0].built
        return (tf.recompute_grad(compute) if gradient_checkpointing else compute)(tokens, *embeddings)

    def describe(self) -> list[str]:
        """One line: tokens, channels, blocks and heads."""
        height, width = self._grid
        lines = [
            f"{height * width} tokens of {self.width} channels, {len(self.blocks)} blocks of "
            f"{self.width // self._head_channels} heads"
        ]
        if self._class_tokens is not None:
            lines.append(f"{self._class_tokens.count} class tokens from block {self._class_tokens_from} on")
        return lines


class AdaptiveHead:
    """A norm, with the timestep's scale and shift if `t_conditional`, and a projection from zero."""

    def __init__(self, width: int, values: int, norm: str, t_conditional: bool, prefix: str = ""):
        dense = keras.layers.Dense
        self._norm = normalization(norm, affine=not t_conditional, name=f"{prefix}norm_out")
        self._modulation = None
        if t_conditional:
            self._modulation = dense(2 * width, kernel_initializer="zeros", name=f"{prefix}modulation_out")
        self._project = dense(values, kernel_initializer="zeros", name=f"{prefix}project_out")
        self.layers = [layer for layer in (self._norm, self._modulation, self._project) if layer]

    def __call__(self, h: tf.Tensor, t_embedding: tf.Tensor) -> tf.Tensor:
        """(B, h, w, C) -> float32 (B, h, w, values)."""
        if self._modulation is None:
            return self._project(self._norm(h))
        scale, shift = tf.split(self._modulation(t_embedding), 2, axis=-1)
        return self._project(self._norm(h, scale=scale, shift=shift))
