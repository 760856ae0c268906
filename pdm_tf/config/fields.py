"""The resolved configuration of a run: frozen dataclasses, JSON in and out, checked before any compute.

A `Config` holds all that is needed to rebuild the networks of a run, to train it the same way again, and to
sample it as its owner likes. It is saved as `config.json` in the run folder. Each field says all of itself;
what several fields must satisfy together is checked at the end of this file.
"""

from __future__ import annotations

import math
import os
import typing
from dataclasses import dataclass, field

from pdm_tf.config import words
from pdm_tf.config.words import require, setting

TOGETHER = 16  # images to draw at a time, where nothing else is said
ANALYSES = ("fig1a", "fig1b", "fig2", "fig3", "fig4", "table1", "table2", "memory", "grids")
EMA_LENGTHS = (0.01, 0.25)  # the shortest and longest average that snapshots can be told apart by


@dataclass(frozen=True)
class DataConfig:
    """Which images a run learns from."""

    dataset: str = setting("avatars64", "A named data set, tfds:NAME or folder:PATH.", shared=True)
    image_shape: tuple[int, int, int] = setting((64, 64, 3), "Height, width, channels.", above=0, shared=True)
    num_classes: int = setting(0, "0: the data have no labels.", least=0, shared=True)
    label_names: tuple[str, ...] = setting((), "A name for each class.", shared=True)
    horizontal_flip: bool = setting(False, "Mirror every other image, at random.")
    augmentation: float = setting(
        0.0, "How often training images are turned, scaled, shifted and so on; the network is told.",
        least=0, below=1,
    )  # fmt: skip
    sha256: str = setting("", "What tells it from other data, wherever it lies; filled in.", may_change=True)


@dataclass(frozen=True)
class NetworkConfig:
    """The network: what is around its trunk, and the trunk's own fields (Tables 3 and 4, Appendix D)."""

    kind: str = setting("unet", "Which trunk works on the grid of patches.", choices=("unet", "vit"))
    patch_size: int = setting(4, "P, the side of a patch in pixels.", above=0)
    patch_switch_t: int = setting(
        0, "From this t on patches have side 2P, around the same trunk; 0: nowhere.", least=0
    )
    base_channels: int = setting(
        128, "The width that a patch is projected to; a ViT's from end to end.", above=0
    )
    dropout: float = setting(0.0, "The rate in the trunk's blocks.", least=0, below=1)
    class_conditioning: str = setting(
        "none", "How labels reach the trunk; tokens are for a ViT.",
        choices=("none", "gate", "embedding", "tokens"),
    )  # fmt: skip
    blurred_inputs: tuple[float, ...] = setting(
        (), "The network also sees its input blurred by Gaussians of these widths, in pixels.", above=0
    )
    channel_multipliers: tuple[float, ...] = setting(
        (1, 2, 2), "Each level's width over base_channels.", above=0, of=("unet",)
    )
    blocks_per_level: int = setting(2, "Residual blocks of an encoder level.", above=0, of=("unet",))
    attention_resolutions: tuple[int, ...] = setting(
        (16, 8), "Grid sizes, in patches, with self-attention.", above=0, of=("unet",)
    )
    head_channels: int = setting(64, "Channels of an attention head.", above=0, of=("unet", "vit"))
    depth: int = setting(12, "Blocks.", above=0, of=("vit",))
    norm: str = setting(
        "rms", "RMSNorm, LayerNorm or GroupNorm.", choices=("rms", "layer", "group"), of=("vit",)
    )
    norm_place: str = setting(
        "before", "Norms before or after residual connections.", choices=("before", "after"), of=("vit",)
    )
    t_conditioning: str = setting(
        "everywhere", "Norms that the timestep scales and shifts; once: none, it is added to the tokens.",
        choices=("everywhere", "feed_forward", "once"), of=("vit",),
    )  # fmt: skip
    t_gates: bool = setting(
        True, "The timestep also gates those residual branches, from zero (adaLN-Zero).", of=("vit",)
    )
    residual_scaling: str = setting(
        "none", "What of a residual branch is scaled by 1/sqrt(depth).",
        choices=("none", "initial_weights", "branch"), of=("vit",),
    )  # fmt: skip
    input_injections: tuple[int, ...] = setting(
        (), "Blocks, from 1, before which a projection of the input is added.", above=0, of=("vit",)
    )
    qk_norm: bool = setting(True, "Norms of each head's q and k.", of=("vit",))
    rope: bool = setting(True, "Rotary positions beside the fixed ones.", of=("vit",))
    feed_forward: str = setting(
        "swiglu", "The activation of the feed-forward layers.", choices=("gelu", "swiglu"), of=("vit",)
    )
    bottleneck: int = setting(
        0, "Numbers that a patch is projected to first; 0: no bottleneck.", least=0, of=("vit",)
    )
    class_tokens: int = setting(8, "Tokens of the label, if they come as such.", above=0, of=("vit",))
    class_tokens_from: int = setting(1, "The block, from 1, before which these come.", above=0, of=("vit",))


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process, what the network predicts, and which noise levels it sees."""

    num_timesteps: int = setting(1000, "T, the steps of the process.", above=0, shared=True)
    schedule: str = setting(
        "linear", "How the noise grows.", choices=("linear", "cosine", "shifted_linear", "shifted_cosine"),
        shared=True,
    )  # fmt: skip
    beta_start: float = setting(1e-4, "beta of the first step, if linear.", above=0, shared=True)
    beta_end: float = setting(0.02, "beta of the last step, if linear.", below=1, above=0, shared=True)
    prediction: str = setting("x", "What the network predicts.", choices=("x", "eps", "v"))
    loss_weighting: str = setting(
        "sqrt_snr", "gamma_t of the loss.",
        choices=(
            "sqrt_snr", "constant", "snr", "min_snr", "vlb", "snr_plus_one", "truncated_snr", "p2", "sigmoid",
            "bounded_v",
        ),
    )  # fmt: skip
    loss_bias: float = setting(
        0.0, "b of gamma_t, a log-SNR: of sigmoid where it bends, of bounded_v -2 ln of the noise's scale.",
        least=-20, most=20,
    )  # fmt: skip
    t_distribution: str = setting(
        "uniform", "How often training sees each t; the loss is a mean under this law.",
        choices=("uniform", "logit_normal"),
    )  # fmt: skip
    t_mean: float = setting(
        -0.8,
        "If logit_normal: mean of the logit of a straight path's time at 256 pixels.",
        least=-10,
        most=10,
    )
    t_std: float = setting(0.8, "If logit_normal: its standard deviation.", above=0)
    t_start: int = setting(0, "The network is trained on t_start <= t < t_stop.", least=0)
    t_stop: int = setting(1000, "See t_start.", above=0)
    large_share: float = setting(
        0.5, "With network.patch_switch_t: how much of a batch is trained in patches of 2P.",
        above=0, below=1,
    )  # fmt: skip
    label_dropout: float = setting(0.1, "How often a label gives way to the null label.", least=0, below=1)


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with a linear warm-up to a learning rate that stays, or falls linearly at the end."""

    learning_rate: float = setting(1e-4, "The rate between warm-up and cooldown.", above=0)
    beta_1: float = setting(0.9, "Decay of the first moment.", least=0, below=1)
    beta_2: float = setting(0.99, "Decay of the second moment.", least=0, below=1)
    epsilon: float = setting(1e-7, "Added to the root of the second moment.", above=0)
    warmup_steps: int = setting(5000, "Steps over which the rate grows.", least=0)
    cooldown_steps: int = setting(
        0, "The last of training.steps, over which the rate falls; 0: none.", least=0, may_change=True
    )
    clip_norm: float = setting(0.0, "Largest global gradient norm; 0: no clipping.", least=0)


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample: what the owner of the weights likes, and a command may override."""

    sampler: str = setting(
        "ancestral", "How a step goes.",
        choices=("ancestral", "ddim", "dpm_solver", "unipc", "ipndm"), may_change=True,
    )  # fmt: skip
    steps: tuple[int, ...] = setting(
        (250,), "Kept steps; or one count a section, from the least noise to the most: 90,60,60,20,20.",
        above=0, may_change=True,
    )  # fmt: skip
    spacing: str = setting(
        "even", "Space them evenly in t or in log-SNR.",
        choices=("even", "logsnr"), may_change=True,
    )  # fmt: skip
    guidance: float = setting(1.0, "Weight w of classifier-free guidance; 1 is without.", may_change=True)
    variance: str = setting(
        "learned", "Variance of ancestral steps.",
        choices=("learned", "small", "large"), may_change=True, of=("ancestral",),
    )  # fmt: skip
    eta: float = setting(0.0, "Noise of DDIM's steps.", least=0, most=1, may_change=True, of=("ddim",))
    order: int = setting(2, "Order of UniPC's steps.", least=2, most=3, may_change=True, of=("unipc",))
    jit_compile: bool = setting(False, "Compile sampling with XLA (for accelerators).", may_change=True)


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop. All periods are in optimizer steps."""

    batch_size: int = setting(64, "Images a step, over all replicas.", above=0)
    steps: int = setting(100_000, "Steps to train, in all.", above=0, may_change=True)
    minutes: float = setting(
        0.0, "Stop after so many minutes, all saved, to go on by the same command; 0: no limit.",
        least=0, may_change=True,
    )  # fmt: skip
    precision: str = setting(
        "auto", "auto: mixed_bfloat16 on TPU and on GPUs from compute capability 8.0 on, float32 elsewhere.",
        choices=("auto", "float32", "mixed_bfloat16"),
    )  # fmt: skip
    grad_accum: int = setting(1, "Parts that a replica's batch is worked off in, to save memory.", above=0)
    gradient_checkpointing: bool = setting(
        False, "Compute activations again in the backward pass, to save memory."
    )
    jit_compile: bool = setting(False, "Compile the train step with XLA.")
    steps_per_execution: int = setting(1, "Train steps for each call from the host.", above=0)
    ema_decay: float = setting(0.99, "Of the averaged weights.", least=0, below=1)
    ema_every: int = setting(100, "Steps between two updates of them.", above=0)
    ema_warmup: bool = setting(False, "Start from a decay of 0.1 that grows to ema_decay.")
    ema_lengths: tuple[float, ...] = setting(
        (), "Also keep averages over these parts of the run, to make any length from; empty: none.",
        least=EMA_LENGTHS[0], most=EMA_LENGTHS[1],
    )  # fmt: skip
    ema_snapshots: int = setting(
        32, "How often in the run these are written for good.", above=0, may_change=True
    )
    log_every: int = setting(50, "Steps between two lines of metrics.", above=0, may_change=True)
    max_bad_steps: int = setting(
        20, "Stop after so many steps in a row whose gradient is not finite.", above=0, may_change=True
    )
    eval_every: int = setting(
        5000, "Steps between two evaluations; a multiple of log_every.", above=0, may_change=True
    )
    eval_batches: int = setting(
        4, "Batches of the held-out split, with fixed noise.", above=0, may_change=True
    )
    sample_every: int = setting(5000, "Steps between two previews.", above=0, may_change=True)
    sample_images: int = setting(64, "Images of a preview, at most.", above=0, may_change=True)
    sample_steps: int = setting(
        20, "Most steps of a preview; where sampling takes more, DPM-Solver++ draws it in so many.",
        above=0, may_change=True,
    )  # fmt: skip
    score_every: int = setting(
        0, "Steps between two scores, distances of samples to the training images; 0: none.",
        least=0, may_change=True,
    )  # fmt: skip
    score_images: int = setting(256, "Images of a score.", least=8, may_change=True)
    keep_best: bool = setting(False, "Keep the averages of the best score (ema/best.npz).", may_change=True)
    checkpoint_every: int = setting(5000, "Steps between two checkpoints.", above=0, may_change=True)
    keep_checkpoints: int = setting(2, "How many of the newest stay.", above=0, may_change=True)
    keep_every: int = setting(0, "And those of every such step, for good; 0: none.", least=0, may_change=True)
    warm_start: str = setting("", "Run folder whose averaged weights a new run starts from.", may_change=True)
    warm_start_partly: bool = setting(
        False, "Take of them what fits this network, and tell what does not.", may_change=True
    )


@dataclass(frozen=True)
class Config:
    """Everything a run is made from."""

    seed: int = setting(0, "Of everything random.", least=0, below=2**31)
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def to_json(self) -> str:
        """The config as indented JSON text."""
        return words.to_json(self)

    @staticmethod
    def from_json(text: str | bytes, where: str = "config.json") -> Config:
        """Reads `to_json`'s text; `where` names the file in errors.

        Raises:
          UserError: not JSON, an unknown key or a value of the wrong type.
        """
        return words.from_json(Config, text, where)

    def replace(self, settings: dict[str, typing.Any]) -> Config:
        """A copy with dotted keys set, as in `{"optimizer.learning_rate": 1e-4}`."""
        return words.replace(self, settings)

    @property
    def conditional(self) -> bool:
        """Whether the network is told labels."""
        return self.network.class_conditioning != "none"


def changes(old: Config, new: Config) -> dict[str, tuple[typing.Any, typing.Any]]:
    """As `words.differences`; but data count by their digests, or else by the place that their names mean.

    So a data set that was moved, or is named in another way, is the same, and one that was made anew in its
    place is not. It is one difference, that of data.dataset.
    """
    found = words.differences(old, new)
    found.pop("data.sha256", None)
    one, other = old.data, new.data
    if one.sha256 and other.sha256:
        found.pop("data.dataset", None)
        if one.sha256 != other.sha256:
            found["data.dataset"] = tuple(f"{d.dataset}, sha256 {d.sha256[:8]}" for d in (one, other))
    elif _place(one.dataset) == _place(other.dataset):
        found.pop("data.dataset", None)
    return found


def _place(dataset: str) -> str:
    """One way of writing the place of folder:PATH."""
    kind, colon, path = dataset.partition(":")
    if kind != "folder":
        return dataset
    path = path.rstrip("/") if "://" in path else os.path.abspath(os.path.expanduser(path))
    return kind + colon + path


def parse_settings(assignments: typing.Sequence[str]) -> dict[str, typing.Any]:
    """Reads `--set` arguments such as "network.dropout=0.1" as typed values by dotted key.

    Raises:
      UserError: not of the form key=value, an unknown key or a value of the wrong type.
    """
    return words.parse_assignments(Config, assignments)


def validate(config: Config) -> Config:
    """Returns `config`, or raises UserError for the first value that cannot work."""
    words.check(config)
    check_network(config.network, config.data.image_shape)
    _check_data(config)
    _check_diffusion(config)
    if config.network.patch_switch_t:
        _check_two_sizes(config)
    _check_training(config)
    check_sampling(config)
    return config


def check_network(network: NetworkConfig, image_shape: typing.Sequence[int]) -> None:
    """Raises UserError if such a network cannot be made for images of (height, width, channels)."""
    if network.kind == "unet":
        _check_unet(network, image_shape)
    _check_division(image_shape, network.patch_size, "patch_size", "another network.patch_size")
    if network.kind == "vit":
        _check_vit(network)
    if network.patch_switch_t:
        _check_division(
            image_shape,
            2 * network.patch_size,
            f"2 * patch_size = 2 * {network.patch_size}",
            "a smaller network.patch_size",
        )


def _check_unet(network: NetworkConfig, image_shape: typing.Sequence[int]) -> None:
    levels = len(network.channel_multipliers)
    require(
        levels > 0,
        "network.channel_multipliers is empty: give one multiplier for each level, such as 1,2,2",
    )
    require(
        network.class_conditioning != "tokens",
        "network.class_conditioning=tokens is for network.kind=vit: use gate or embedding",
    )
    require(
        levels > 1 or not network.patch_switch_t,
        "network.patch_switch_t: large patches enter a U-Net's second level, and network.channel_multipliers="
        f"{words.word(network.channel_multipliers)} has one: use two or more",
    )
    _check_division(
        image_shape,
        network.patch_size * 2 ** (levels - 1),
        f"patch_size * 2^(levels - 1) = {network.patch_size} * {2 ** (levels - 1)}",
        "a smaller network.patch_size or fewer network.channel_multipliers",
    )
    grid = max(image_shape[:2]) // network.patch_size
    for level, multiplier in enumerate(network.channel_multipliers):
        width = network.base_channels * multiplier
        require(
            width % 32 == 0,
            f"network.base_channels * multiplier = {network.base_channels} * {multiplier:g} = {width:g}: "
            "every level's width must divide by 32, the number of normalization groups",
        )
        attends = level == levels - 1 or grid // 2**level in network.attention_resolutions
        require(
            not attends or width % network.head_channels == 0,
            f"level {level} has {width:g} channels and attention, which must divide by "
            f"network.head_channels={network.head_channels}",
        )


def _check_vit(network: NetworkConfig) -> None:
    width, head = network.base_channels, network.head_channels
    require(
        width % head == 0 and head % 4 == 0,
        f"network.base_channels={width} must divide by network.head_channels={head}, and those by 4",
    )
    require(
        network.norm != "group" or width % 32 == 0,
        f"network.base_channels={width} must divide by 32, the number of normalization groups",
    )
    require(
        not network.t_gates or network.t_conditioning != "once",
        "network.t_gates=True needs norms that the timestep conditions, and network.t_conditioning=once has "
        "none: use network.t_gates=false",
    )
    for name in ("input_injections", "class_tokens_from"):
        value = getattr(network, name)
        blocks = value if isinstance(value, tuple) else (value,)
        require(
            all(block <= network.depth for block in blocks),
            f"network.{name}={words.word(value)}: there are network.depth={network.depth} blocks",
        )


def _check_division(image_shape: typing.Sequence[int], factor: int, meaning: str, instead: str) -> None:
    for side, size in zip(("height", "width"), image_shape):
        nearest = max(factor, round(size / factor) * factor)
        require(
            size % factor == 0,
            f"image {side} {size} does not divide by {meaning} = {factor}: resize to {nearest}, or use "
            f"{instead}",
        )


def _check_data(config: Config) -> None:
    require(
        not (config.data.augmentation and config.data.horizontal_flip),
        "data.augmentation mirrors every other image and tells the network, which data.horizontal_flip does "
        "not: use data.horizontal_flip=false",
    )
    require(
        not config.conditional or config.data.num_classes > 0,
        f"network.class_conditioning={config.network.class_conditioning} needs labels, and "
        f"{config.data.dataset} has none: use network.class_conditioning=none",
    )


def _check_diffusion(config: Config) -> None:
    d = config.diffusion
    require(
        d.beta_start < d.beta_end,
        f"diffusion.beta_start={d.beta_start}, diffusion.beta_end={d.beta_end}: they must satisfy "
        "0 < beta_start < beta_end < 1",
    )
    require(
        d.t_start < d.t_stop <= d.num_timesteps,
        f"diffusion.t_start={d.t_start}, diffusion.t_stop={d.t_stop}: they must satisfy "
        f"0 <= t_start < t_stop <= num_timesteps = {d.num_timesteps}",
    )


def _check_two_sizes(config: Config) -> None:
    network, d, training = config.network, config.diffusion, config.training
    require(
        d.t_start < network.patch_switch_t < d.t_stop,
        f"network.patch_switch_t={network.patch_switch_t} is not within {d.t_start} < t < {d.t_stop}, what "
        "the network is trained on: use one that is, or 0",
    )
    require(
        training.batch_size >= 2 * training.grad_accum,
        f"training.batch_size={training.batch_size} with training.grad_accum={training.grad_accum}: each "
        "part of a batch needs two images or more for two patch sizes (network.patch_switch_t)",
    )


def _check_training(config: Config) -> None:
    training = config.training
    together = training.steps_per_execution
    for name in ("steps", "log_every", "sample_every", "score_every", "checkpoint_every", "ema_every"):
        value = getattr(training, name)
        require(
            value % together == 0,
            f"training.{name}={value} is not a multiple of training.steps_per_execution={together}: "
            f"use {math.ceil(value / together) * together}",
        )
    require(
        config.optimizer.cooldown_steps <= training.steps,
        f"optimizer.cooldown_steps={config.optimizer.cooldown_steps} is more than "
        f"training.steps={training.steps}: the rate falls over the last of these",
    )
    require(
        training.eval_every % training.log_every == 0,
        f"training.eval_every={training.eval_every} is not a multiple of "
        f"training.log_every={training.log_every}",
    )
    require(
        training.score_every > 0 or not training.keep_best,
        "training.keep_best keeps the weights of the best score: say how often to score, as in "
        "training.score_every=5000",
    )
    require(
        training.batch_size % training.grad_accum == 0,
        f"training.batch_size={training.batch_size} does not divide by "
        f"training.grad_accum={training.grad_accum}",
    )


def check_sampling(config: Config) -> None:
    """Raises UserError if the config's model cannot be sampled as its `sampling` says."""
    words.check(config.sampling, "sampling.")
    steps, spacing = config.sampling.steps, config.sampling.spacing
    text = words.word(steps)
    require(
        len(steps) > 0, "sampling.steps is empty: write a number, or one for each section: 90,60,60,20,20"
    )
    require(
        spacing == "even" or len(steps) == 1,
        f"sampling.steps={text}: sampling.spacing={spacing} takes one number of steps",
    )
    largest = config.diffusion.num_timesteps // len(steps)
    require(
        max(steps) <= largest,
        f"sampling.steps={text}: the process has {config.diffusion.num_timesteps} steps, so use 1 to "
        f"{largest} in each of {len(steps)} section{'s' if len(steps) > 1 else ''}",
    )
    require(
        config.sampling.guidance == 1.0 or config.conditional,
        f"sampling.guidance={config.sampling.guidance:g}: this model has no classes to guide with",
    )
