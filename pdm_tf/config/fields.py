"""The resolved configuration of a run: frozen dataclasses, JSON in and out, checked before any compute.

A `Config` holds all that is needed to rebuild the networks of a run, to train it the same way again, and to
sample it as its owner likes. It is saved as `config.json` in the run folder. Each field says all of itself;
what several fields must satisfy together is checked at the end of this file.
"""

from __future__ import annotations

import difflib
import json
import math
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

from pdm_tf.config import words
from pdm_tf.config.words import choice, setting
from pdm_tf.errors import UserError

TOGETHER = 16  # images to draw at a time by default
SAMPLERS = ("ancestral", "ddim", "heun", "dpm_solver", "unipc", "ipndm")
LOSS_WEIGHTINGS = (
    "sqrt_snr", "constant", "snr", "min_snr", "vlb", "snr_plus_one", "truncated_snr", "p2",
    "sigmoid", "bounded_v",
)  # fmt: skip
EMA_LENGTHS = (0.01, 0.25)  # the shortest and longest average that snapshots can be told apart by


# Fields of one trunk, and fields that may differ between the parts of a run.
_unet = partial(setting, of=("unet",))
_vit = partial(setting, of=("vit",))
_free = partial(setting, may_change=True)
_free_choice = partial(choice, may_change=True)
_student = partial(setting, of=("student",))


@dataclass(frozen=True)
class DataConfig:
    """Which images a run learns from."""

    dataset: str = setting("avatars64", "A named data set, tfds:NAME or folder:PATH.", shared=True)
    image_shape: tuple[int, int, int] = setting((64, 64, 3), "Height, width, channels.", above=0, shared=True)
    num_classes: int = setting(0, "0: the data have no labels.", least=0, shared=True)
    label_names: tuple[str, ...] = setting((), "A name for each class.", shared=True)
    horizontal_flip: bool = setting(False, "Mirror every other image, at random.")
    crop: int = setting(0, "Train on random squares of this side in pixels; 0: on whole images.", least=0)
    augmentation: float = setting(0.0, "Share of images turned, scaled and shifted.", least=0, below=1)
    sha256: str = _free("", "Digest of the data, wherever they lie; filled in.")

    @property
    def trained_area(self) -> float:
        """The share of an image that a run trains on at a time: a crop's, or 1."""
        height, width, _ = self.image_shape
        return self.crop**2 / (height * width) or 1.0


@dataclass(frozen=True)
class NetworkConfig:
    """The network: what is around its trunk, and the trunk's own fields (Tables 3 and 4, Appendix D)."""

    kind: str = choice(("unet", "vit"), "Which trunk works on the grid of patches.")
    patch_size: int = setting(4, "P, the side of a patch in pixels.", above=0)
    patch_switch_t: int = setting(0, "From this t on patches of 2P, around the same trunk; 0: none.", least=0)
    base_channels: int = setting(128, "Width that a patch is projected to; a ViT's from end to end.", above=0)
    dropout: float = setting(0.0, "The rate in the trunk's blocks.", least=0, below=1)
    class_conditioning: str = choice(
        ("none", "gate", "embedding", "tokens"), "How labels reach the trunk; tokens are for a ViT."
    )
    blurred_inputs: tuple[float, ...] = setting((), "Widths in pixels of blurs to see, too.", above=0)
    refiner_channels: int = setting(0, "Width of convolutions that refine the prediction; 0: none.", least=0)
    refiner_patch_size: int = setting(4, "The side of the patches that these work on.", above=0)
    channel_multipliers: tuple[float, ...] = _unet((1, 2, 2), "Levels' widths over base_channels.", above=0)
    blocks_per_level: int = _unet(2, "Residual blocks of an encoder level.", above=0)
    attention_resolutions: tuple[int, ...] = _unet((16, 8), "Grid sizes with self-attention.", above=0)
    local: bool = _unet(False, "Sees a place's surroundings alone: no attention, no position.")
    head_channels: int = setting(64, "Channels of an attention head.", above=0, of=("unet", "vit"))
    depth: int = _vit(12, "Blocks.", above=0)
    norm: str = choice(("rms", "layer", "group"), "RMSNorm, LayerNorm or GroupNorm.", of=("vit",))
    norm_place: str = choice(("before", "after"), "Norms before or after residuals.", of=("vit",))
    t_conditioning: str = choice(
        ("everywhere", "feed_forward", "once"),
        "Norms that the timestep scales and shifts; once: none, it is added to the tokens.",
        of=("vit",),
    )
    t_gates: bool = _vit(True, "The timestep also gates those residual branches, from zero (adaLN-Zero).")
    residual_scaling: str = choice(
        ("none", "initial_weights", "branch"), "What is scaled by 1/sqrt(depth) in a branch.", of=("vit",)
    )
    input_injections: tuple[int, ...] = _vit((), "Blocks, from 1, that see the input again.", above=0)
    qk_norm: bool = _vit(True, "Norms of each head's q and k.")
    rope: bool = _vit(True, "Rotary positions beside the fixed ones.")
    feed_forward: str = choice(("swiglu", "gelu"), "Activation of the feed-forward layers.", of=("vit",))
    bottleneck: int = _vit(0, "Numbers that a patch is projected to first; 0: no bottleneck.", least=0)
    class_tokens: int = _vit(8, "Tokens of the label, if they come as such.", above=0)
    class_tokens_from: int = _vit(1, "The block, from 1, before which these come.", above=0)


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process, what the network predicts, and which noise levels it sees."""

    num_timesteps: int = setting(1000, "T, the steps of the process.", above=0, shared=True)
    schedule: str = choice(
        ("linear", "cosine", "shifted_linear", "shifted_cosine"), "How the noise grows.", shared=True
    )
    beta_start: float = setting(1e-4, "beta of the first step, if linear.", above=0, shared=True)
    beta_end: float = setting(0.02, "beta of the last step, if linear.", below=1, above=0, shared=True)
    prediction: str = choice(("x", "eps", "v"), "What the network predicts.")
    loss_weighting: str = choice(LOSS_WEIGHTINGS, "gamma_t of the loss.")
    # Of sigmoid where it bends, of bounded_v -2 ln of the noise's scale.
    loss_bias: float = setting(0.0, "b of gamma_t, a log-SNR.", least=-20, most=20)
    t_distribution: str = choice(
        ("uniform", "logit_normal"), "Distribution of the training timesteps, under which the loss is a mean."
    )
    t_mean: float = setting(-0.8, "If logit_normal: mean logit of t at 256 pixels.", least=-10, most=10)
    t_std: float = setting(0.8, "If logit_normal: its standard deviation.", above=0)
    t_start: int = setting(0, "The network is trained on t_start <= t < t_stop.", least=0)
    t_stop: int = setting(1000, "See t_start.", above=0)
    large_share: float = setting(0.5, "Share of a batch in patches of 2P, if any.", above=0, below=1)
    label_dropout: float = setting(0.1, "How often a label gives way to the null label.", least=0, below=1)


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with a linear warm-up to a learning rate that stays, or falls linearly at the end."""

    learning_rate: float = setting(1e-4, "The rate between warm-up and cooldown.", above=0)
    beta_1: float = setting(0.9, "Decay of the first moment.", least=0, below=1)
    beta_2: float = setting(0.99, "Decay of the second moment.", least=0, below=1)
    epsilon: float = setting(1e-7, "Added to the root of the second moment.", above=0)
    warmup_steps: int = setting(5000, "Steps over which the rate grows.", least=0)
    cooldown_steps: int = _free(0, "The last of training.steps, over which the rate falls; 0: none.", least=0)
    clip_norm: float = setting(0.0, "Largest global gradient norm; 0: no clipping.", least=0)


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample: what the owner of the weights likes, and a command may override."""

    sampler: str = _free_choice(SAMPLERS, "The sampler.")
    steps: tuple[int, ...] = _free(
        (250,), "Number of steps; 90,60,60,20,20: of each fifth of the process, cleanest first.", above=0
    )
    spacing: str = _free_choice(
        ("even", "logsnr", "trailing", "logsnr_trailing"),
        "Steps even in t, or in log-SNR (logsnr); trailing: without the cleanest t, for few steps.",
    )
    guidance: float = _free(1.0, "Weight w of classifier-free guidance; 1: none.")
    guidance_interval: tuple[int, ...] = _free((), "LO,HI: guide only where LO <= t < HI.", least=0)
    threshold: str = _free_choice(
        ("dynamic", "static", "none"),
        "What keeps a guided x within [-1, 1]; none: no clipping, guided or not.",
    )
    variance: str = _free_choice(
        ("learned", "small", "large"), "Variance of ancestral steps.", of=("ancestral",)
    )
    eta: float = _free(0.0, "Noise of DDIM's steps.", least=0, most=1, of=("ddim",))
    order: int = _free(2, "Order of UniPC's steps.", least=2, most=3, of=("unipc",))
    jit_compile: bool = _free(False, "Compile sampling with XLA (for accelerators).")


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop. All periods are in optimizer steps."""

    batch_size: int = setting(64, "Images a step, over all replicas.", above=0)
    steps: int = _free(100_000, "Steps to train, in all.", above=0)
    minutes: float = _free(0.0, "Stop after this time, saved, to go on later; 0: never.", least=0)
    precision: str = choice(
        ("auto", "float32", "mixed_bfloat16"), "auto: mixed_bfloat16 where the device is faster with it."
    )
    grad_accum: int = setting(1, "Parts to compute a replica's batch in, to save memory.", above=0)
    gradient_checkpointing: bool = setting(False, "Compute activations again backwards, to save memory.")
    jit_compile: bool = setting(False, "Compile the train step with XLA.")
    steps_per_execution: int = setting(1, "Train steps for each call from the host.", above=0)
    ema_decay: float = setting(0.99, "Decay of the averaged weights.", least=0, below=1)
    ema_every: int = setting(100, "Steps between two updates of these.", above=0)
    ema_warmup: bool = setting(False, "Start from a decay of 0.1 that grows to ema_decay.")
    ema_lengths: tuple[float, ...] = setting(
        (), "Also keep averages over these parts of the run.", least=EMA_LENGTHS[0], most=EMA_LENGTHS[1]
    )
    ema_snapshots: int = _free(32, "How often in the run these are written for good.", above=0)
    log_every: int = _free(50, "Steps between two lines of metrics.", above=0)
    max_bad_steps: int = _free(20, "Stop after this many steps in a row with a gradient not finite.", above=0)
    eval_every: int = _free(5000, "Steps between two evaluations; a multiple of log_every.", above=0)
    eval_batches: int = _free(4, "Batches of the held-out split, with fixed noise.", above=0)
    sample_every: int = _free(5000, "Steps between two previews.", above=0)
    sample_images: int = _free(64, "Images of a preview.", above=0)
    sample_steps: int = _free(20, "Most steps of a preview, which DPM-Solver++ then takes.", above=0)
    score_every: int = _free(0, "Steps between two scores (distances to the data); 0: none.", least=0)
    score_images: int = _free(256, "Images of a score.", least=8)
    keep_best: bool = _free(False, "Keep the averages of the best score (ema/best.npz).")
    checkpoint_every: int = _free(5000, "Steps between two checkpoints.", above=0)
    keep_checkpoints: int = _free(2, "How many of the newest stay.", above=0)
    keep_every: int = _free(0, "And those of every such step, for good; 0: none.", least=0)
    warm_start: str = setting(
        "", "Run folder, or name of weights that ship, whose averages a new run starts from; empty: none."
    )


@dataclass(frozen=True)
class DistillationConfig:
    """A student, each of whose steps stands for several of a teacher."""

    teacher: tuple[str, ...] = _student(
        (), "Run folder, or name of weights that ship, of the teacher, or of its experts; empty: none."
    )
    method: str = choice(
        ("progressive", "consistency"),
        "Learn from the teacher's steps alone, or from one and the student's own.",
        of=("student",),
    )
    steps: int = _student(4, "Steps of the student.", above=0)
    spacing: str = choice(
        ("logsnr_trailing", "trailing"), "How they, and the teacher's, are spaced.", of=("student",)
    )
    first: int = _student(16, "Steps of the teacher at first: steps times factor, once or more.", above=1)
    factor: int = _student(2, "Steps of the teacher that become one in a phase.", above=1)
    phase_steps: int = _student(1000, "Train steps of a phase but the last, which is longer.", above=0)

    @property
    def phases(self) -> int:
        """How often the steps are divided by the factor."""
        return max(round(math.log(self.first / self.steps, self.factor)), 1)

    def phase(self, step: int) -> int:
        """The phase, from 0, of the train step after `step` of them."""
        return min(step // self.phase_steps, self.phases - 1)

    def teacher_steps(self, step: int) -> int:
        """The teacher's number of steps in the phase of the train step after `step` of them."""
        return self.first // self.factor ** self.phase(step)


@dataclass(frozen=True)
class Config:
    """Everything a run is made from."""

    seed: int = setting(0, "Seed of all random numbers.", least=0, below=2**31)
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes, where: str = "config.json") -> Config:
        """Reads `to_json`'s text; `where` names the file in errors."""
        return words.from_json(Config, text, where)

    def replace(self, settings: dict[str, typing.Any]) -> Config:
        """A copy with dotted keys set, as in `{"optimizer.learning_rate": 1e-4}`."""
        return words.replace(self, settings)

    @property
    def used_keys(self) -> list[str]:
        """The keys of the fields that count for its kind of network, its sampler and its teacher."""
        users = {self.network.kind, self.sampling.sampler, "student" if self.is_student else ""}
        return [
            key for key, leaf in words.leaves(Config).items() if not leaf.rule.of or users & set(leaf.rule.of)
        ]

    @property
    def conditional(self) -> bool:
        """Whether the network sees labels."""
        return self.network.class_conditioning != "none"

    @property
    def is_student(self) -> bool:
        """Whether the network learns from another one's steps."""
        return bool(self.distillation.teacher)


SHARED = [key for key, leaf in words.leaves(Config).items() if leaf.rule.shared]  # by experts of one model
OF_DATA = [key for key in SHARED if key.startswith("data.")]


def changes(old: Config, new: Config) -> dict[str, tuple[typing.Any, typing.Any]]:
    """As `words.differences`, with data sets compared by their digests: one that was moved is the same.

    Other data in its place are one difference, that of data.dataset.
    """
    found = words.differences(old, new)
    found.pop("data.sha256", None)
    one, other = old.data, new.data
    if one.sha256 and other.sha256:
        found.pop("data.dataset", None)
        if one.sha256 != other.sha256:
            found["data.dataset"] = tuple(f"{d.dataset}, sha256 {d.sha256[:8]}" for d in (one, other))
    return found


def parse_settings(assignments: Sequence[str]) -> dict[str, typing.Any]:
    """Reads `--set` arguments such as "network.dropout=0.1" as typed values by dotted key."""
    known = words.leaves(Config)
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(
                f"--set={assignment}: write --set=key=value, such as --set=optimizer.learning_rate=1e-4"
            )
        if key not in known:
            begun = [name for name in known if name.startswith(key)]
            close = begun or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            advice = f"; did you mean {close[0]}?" if close else f"; the keys are {', '.join(known)}"
            raise UserError(f"--set: there is no setting {key!r}{advice}")
        values[key] = words.parse(text, known[key].kind, f"--set={key}")
    return values


def validate(config: Config) -> Config:
    """Returns `config`, or raises UserError for the first value that cannot work."""
    words.check(config)
    check_network(config.network, config.data.image_shape)
    _check_data(config)
    _check_diffusion(config.diffusion, config.network.patch_switch_t)
    _check_training(config)
    if config.is_student:
        _check_distillation(config)
    check_sampling(config)
    return config


def check_network(network: NetworkConfig, image_shape: Sequence[int]) -> None:
    """Raises UserError if such a network cannot be made for images of (height, width, channels)."""
    size = network.patch_size
    if network.kind == "unet":
        _check_unet(network, image_shape)
    _check_division(image_shape, size, "patch_size", "another network.patch_size")
    if network.kind == "vit":
        _check_vit(network)
    if network.refiner_channels:
        if network.local:
            raise UserError(
                f"network.refiner_channels={network.refiner_channels}: a refiner normalizes over the whole "
                "image, which a network that learns from crops (network.local) may not: use 0"
            )
        _check_groups(f"network.refiner_channels={network.refiner_channels}", network.refiner_channels)
        refined = network.refiner_patch_size
        _check_division(image_shape, refined, "refiner_patch_size", "another network.refiner_patch_size")
    if network.patch_switch_t:
        _check_division(image_shape, 2 * size, f"2 * patch_size = 2 * {size}", "a smaller network.patch_size")


def _check_unet(network: NetworkConfig, image_shape: Sequence[int]) -> None:
    levels = len(network.channel_multipliers)
    if not levels:
        raise UserError("network.channel_multipliers is empty: give one for each level, such as 1,2,2")
    if network.class_conditioning == "tokens":
        raise UserError("network.class_conditioning=tokens is for network.kind=vit: use gate or embedding")
    if network.local and network.attention_resolutions:
        raise UserError(
            "network.local=true has no attention: set network.attention_resolutions= (empty), too"
        )
    if network.patch_switch_t and levels == 1:
        raise UserError("network.patch_switch_t: large patches enter a U-Net's second level; use two or more")
    halvings = 2 ** (levels - 1)
    _check_division(
        image_shape,
        network.patch_size * halvings,
        f"patch_size * 2^(levels - 1) = {network.patch_size} * {halvings}",
        "a smaller network.patch_size or fewer network.channel_multipliers",
    )
    grid = max(image_shape[:2]) // network.patch_size
    head = network.head_channels
    for level, multiplier in enumerate(network.channel_multipliers):
        width = network.base_channels * multiplier
        _check_groups(f"network.base_channels * {multiplier:g} = {width:g}", width)
        attends = level == levels - 1 or grid // 2**level in network.attention_resolutions
        if attends and not network.local and width % head:
            raise UserError(
                f"level {level} attends: its width {width:g} must divide by network.head_channels={head}"
            )


def _check_vit(network: NetworkConfig) -> None:
    width = network.base_channels
    head = network.head_channels
    if width % head or head % 4:
        raise UserError(
            f"network.base_channels={width} must divide by network.head_channels={head}, and those by 4"
        )
    if network.norm == "group":
        _check_groups(f"network.base_channels={width}", width)
    if network.t_gates and network.t_conditioning == "once":
        raise UserError("network.t_conditioning=once has no norms to gate: use network.t_gates=false")
    last = max((network.class_tokens_from, *network.input_injections))
    if last > network.depth:
        raise UserError(
            f"block {last} (input_injections, class_tokens_from): there are network.depth={network.depth}"
        )


def _check_groups(text: str, width: float) -> None:
    if width % 32:
        raise UserError(f"{text} must divide by 32, the number of normalization groups")


def _check_division(image_shape: Sequence[int], factor: int, meaning: str, instead: str) -> None:
    for side, size in zip(("height", "width"), image_shape):
        nearest = max(factor, round(size / factor) * factor)
        if size % factor:
            raise UserError(
                f"image {side} {size} does not divide by {meaning} = {factor}: resize to {nearest}, or use "
                f"{instead}"
            )


def _check_data(config: Config) -> None:
    data = config.data
    network = config.network
    if data.crop:
        if network.kind != "unet" or not network.local:
            raise UserError(
                f"data.crop={data.crop}: this network attends over the whole grid; use a U-Net with "
                "network.local=true and network.attention_resolutions= (empty)"
            )
        factor = network.patch_size * 2 ** (len(network.channel_multipliers) - 1)
        smallest = min(data.image_shape[:2])
        if data.crop % factor or data.crop > smallest:
            raise UserError(
                f"data.crop={data.crop}: use a multiple of {factor}, and at most {smallest}, the image's side"
            )
    if data.augmentation and data.horizontal_flip:
        raise UserError("data.augmentation mirrors every other image, too: use data.horizontal_flip=false")
    if config.conditional and not data.num_classes:
        raise UserError(
            f"network.class_conditioning={network.class_conditioning} needs labels, and {data.dataset} has "
            "none: use network.class_conditioning=none"
        )


def _check_diffusion(d: DiffusionConfig, patch_switch_t: int) -> None:
    if d.beta_start >= d.beta_end:
        raise UserError(f"diffusion.beta_start={d.beta_start} must be below diffusion.beta_end={d.beta_end}")
    if not d.t_start < d.t_stop <= d.num_timesteps:
        raise UserError(
            f"diffusion.t_start={d.t_start}, t_stop={d.t_stop}: use 0 <= start < stop <= {d.num_timesteps}"
        )
    if patch_switch_t and not d.t_start < patch_switch_t < d.t_stop:
        raise UserError(
            f"network.patch_switch_t={patch_switch_t}: use a t within {d.t_start} < t < {d.t_stop}, or 0"
        )


def _check_multiple(name: str, value: int, of: str, factor: int) -> None:
    if value % factor:
        nearest = math.ceil(value / factor) * factor
        raise UserError(f"{name}={value} is not a multiple of {of}={factor}: use {nearest}")


def _check_training(config: Config) -> None:
    training = config.training
    together = training.steps_per_execution
    for name in ("steps", "log_every", "sample_every", "score_every", "checkpoint_every", "ema_every"):
        value = getattr(training, name)
        _check_multiple(f"training.{name}", value, "training.steps_per_execution", together)
    _check_multiple("training.eval_every", training.eval_every, "training.log_every", training.log_every)
    cooldown = config.optimizer.cooldown_steps
    if cooldown > training.steps:
        raise UserError(f"optimizer.cooldown_steps={cooldown} is more than training.steps={training.steps}")
    if training.keep_best and not 0 < training.score_every <= training.steps:
        raise UserError(
            "training.keep_best keeps what scores best: set training.score_every to no more than the "
            f"{training.steps:,} steps of the run"
        )


def _check_distillation(config: Config) -> None:
    d = config.distillation
    training = config.training
    first = d.steps * d.factor**d.phases
    if d.first != first:
        raise UserError(
            f"distillation.first={d.first}: use steps times factor, once or more, such as {first}"
        )
    if d.method == "consistency" and d.phases > 1:
        raise UserError(
            f"distillation.method=consistency has one phase: use distillation.factor={d.first // d.steps}"
        )
    together = training.steps_per_execution
    _check_multiple("distillation.phase_steps", d.phase_steps, "training.steps_per_execution", together)
    if training.steps <= d.phase_steps * (d.phases - 1):
        raise UserError(
            f"training.steps={training.steps} ends before the last of {d.phases} phases of "
            f"distillation.phase_steps={d.phase_steps} begins"
        )
    if (config.diffusion.t_start, config.diffusion.t_stop) != (0, config.diffusion.num_timesteps):
        raise UserError("a student learns all of the process: leave diffusion.t_start and t_stop out")
    if config.data.augmentation:
        raise UserError("a teacher does not know a student's data.augmentation: use 0")


def check_sampling(config: Config, has_guide: bool = False) -> None:
    """Raises UserError if the config's model cannot be sampled as its `sampling` says.

    `has_guide`: whether another model guides it, which needs no classes.
    """
    words.check(config.sampling, "sampling.")
    steps, spacing, guidance = config.sampling.steps, config.sampling.spacing, config.sampling.guidance
    text = words.word(steps)
    if not steps:
        raise UserError("sampling.steps is empty: write a number, or one for each section: 90,60,60,20,20")
    if spacing != "even" and len(steps) > 1:
        raise UserError(f"sampling.steps={text}: sampling.spacing={spacing} takes one number of steps")
    largest = config.diffusion.num_timesteps // len(steps)
    if max(steps) > largest:
        sections = f"each of {len(steps)} sections" if len(steps) > 1 else "all"
        raise UserError(
            f"sampling.steps={text}: the process has {config.diffusion.num_timesteps} steps, so use 1 to "
            f"{largest} in {sections}"
        )
    if guidance != 1.0 and not (config.conditional or has_guide):
        raise UserError(f"sampling.guidance={guidance:g}: this model has no classes to guide with")
    if guidance != 1.0 and not config.diffusion.label_dropout and not has_guide:
        raise UserError(
            f"sampling.guidance={guidance:g}: this model has never learnt images without a class "
            "(diffusion.label_dropout=0), which guidance leads away from"
        )
    interval = config.sampling.guidance_interval
    text = words.word(interval)
    if interval and not (len(interval) == 2 and interval[0] < interval[1]):
        raise UserError(f"sampling.guidance_interval={text}: write two t, LO,HI, the first below the second")
    last = config.diffusion.num_timesteps - 1
    if interval and interval[0] > last:
        raise UserError(f"sampling.guidance_interval={text}: there is no t above {last}")
    if config.is_student:
        _check_student_sampling(config)


def _check_student_sampling(config: Config) -> None:
    """Raises UserError unless a student is sampled in the steps that it was made for."""
    made = config.distillation
    sampling = config.sampling
    made_for = ("ddim", (made.steps,), made.spacing, 0.0, 1.0)
    if (sampling.sampler, sampling.steps, sampling.spacing, sampling.eta, sampling.guidance) != made_for:
        raise UserError(
            f"these weights are a student's, made for sampling.sampler=ddim sampling.steps={made.steps} "
            f"sampling.spacing={made.spacing}, without noise, guidance or masks: leave any others out"
        )
