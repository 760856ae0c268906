"""The resolved configuration of a run: frozen dataclasses, JSON in and out, checked before any compute.

A `Config` holds all that is needed to rebuild the networks of a run and to train it the same way again.
It is saved as `config.json` in the run folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import typing
from dataclasses import dataclass, field

from flags.errors import UserError

PREDICTIONS = ("x", "eps", "v")
LOSS_WEIGHTINGS = ("sqrt_snr", "constant", "snr", "min_snr", "vlb")
CLASS_CONDITIONINGS = ("none", "gate", "embedding")
PRECISIONS = ("auto", "float32", "mixed_bfloat16")


@dataclass(frozen=True)
class DataConfig:
    """Which images a run learns from."""

    dataset: str = "emoji64"  # emoji64, lsun_church, imagenet256, ffhq1024, tfds:NAME or folder:PATH
    image_shape: tuple[int, int, int] = (64, 64, 3)  # height, width, channels
    num_classes: int = 0  # 0: the data have no labels
    label_names: tuple[str, ...] = ()
    horizontal_flip: bool = False  # mirror every other image, at random


@dataclass(frozen=True)
class NetworkConfig:
    """The U-Net of Tables 3 and 4."""

    patch_size: int = 4
    base_channels: int = 128
    channel_multipliers: tuple[float, ...] = (1, 2, 2)
    blocks_per_level: int = 2
    attention_resolutions: tuple[int, ...] = (16, 8)  # grid sizes, in patches
    head_channels: int = 64
    dropout: float = 0.0
    class_conditioning: str = "none"


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process, what the network predicts, and which noise levels it sees."""

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction: str = "x"
    loss_weighting: str = "sqrt_snr"
    t_start: int = 0  # the network is trained on t_start <= t < t_stop
    t_stop: int = 1000
    label_dropout: float = 0.1  # how often a label gives way to the null label


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam with a linear warm-up to a constant learning rate."""

    learning_rate: float = 1e-4
    beta_1: float = 0.9
    beta_2: float = 0.99
    epsilon: float = 1e-7
    warmup_steps: int = 5000
    clip_norm: float = 0.0  # largest global gradient norm; 0: no clipping


@dataclass(frozen=True)
class TrainingConfig:
    """The training loop. All periods are in optimizer steps."""

    batch_size: int = 64  # over all replicas
    steps: int = 100_000
    precision: str = "auto"  # auto: mixed_bfloat16 on TPU, float32 elsewhere
    grad_accum: int = 1  # parts that each replica's batch is worked off in, to save memory
    recompute: bool = False  # compute activations again in the backward pass, to save memory
    jit_compile: bool = False  # compile the train step with XLA
    steps_per_execution: int = 1  # train steps for each call from the host
    ema_decay: float = 0.99
    ema_every: int = 100
    ema_warmup: bool = False  # start from a decay of 0.1 that grows to ema_decay
    log_every: int = 50
    max_bad_steps: int = 20  # stop after so many steps in a row whose gradient is not finite
    eval_every: int = 5000  # a multiple of log_every
    eval_batches: int = 4  # of the held-out split, with fixed noise
    sample_every: int = 5000
    sample_images: int = 64
    sample_steps: int = 250
    checkpoint_every: int = 5000
    keep_checkpoints: int = 2  # the newest ones
    keep_every: int = 0  # and those of every such step, for good; 0: none
    warm_start: str = ""  # run folder whose EMA weights a new run starts from


@dataclass(frozen=True)
class Config:
    """Everything a run is made from."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_json(self) -> str:
        """The config as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str, where: str = "config.json") -> Config:
        """Reads `to_json`'s text; `where` names the file in errors.

        Raises:
          UserError: not JSON, an unknown key or a value of the wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON ({error}); restore it or start a new run") from error
        return _from_dict(Config, values, where)

    def replace(self, settings: dict[str, typing.Any]) -> Config:
        """A copy with dotted keys set, as in `{"optimizer.learning_rate": 1e-4}`."""
        config = self
        for key, value in settings.items():
            section, _, name = key.rpartition(".")
            if section:
                part = dataclasses.replace(getattr(config, section), **{name: value})
                config = dataclasses.replace(config, **{section: part})
            else:
                config = dataclasses.replace(config, **{name: value})
        return config


def parse_settings(assignments: typing.Sequence[str]) -> dict[str, typing.Any]:
    """Parses `--set` arguments such as "network.dropout=0.1" into typed values.

    Raises:
      UserError: not of the form key=value, an unknown key or a value of the wrong type.
    """
    types = _dotted_types(Config)
    settings = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(
                f"--set={assignment}: write --set=key=value, such as --set=optimizer.learning_rate=1e-4"
            )
        if key not in types:
            begun = [known for known in types if known.startswith(key)]
            close = begun or difflib.get_close_matches(key, types, n=1, cutoff=0.4)
            advice = f"; did you mean {close[0]}?" if close else f"; the keys are {', '.join(types)}"
            raise UserError(f"--set: there is no setting {key!r}{advice}")
        settings[key] = _parse(text, types[key], f"--set={key}")
    return settings


def differences(old: Config, new: Config) -> dict[str, tuple[typing.Any, typing.Any]]:
    """The dotted keys in which two configs differ, each with its old and new value."""
    keys = _dotted_types(Config)
    pairs = {key: (_get(old, key), _get(new, key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def validate(config: Config) -> Config:
    """Returns `config`, or raises UserError for the first value that cannot work."""
    _validate_choices(config)
    _validate_network(config)
    _validate_diffusion(config)
    _validate_training(config)
    return config


def _validate_choices(config: Config) -> None:
    choices = {
        "network.class_conditioning": CLASS_CONDITIONINGS,
        "diffusion.prediction": PREDICTIONS,
        "diffusion.loss_weighting": LOSS_WEIGHTINGS,
        "training.precision": PRECISIONS,
    }
    for key, allowed in choices.items():
        _require(
            _get(config, key) in allowed,
            f"{key}={_get(config, key)}: use one of {', '.join(allowed)}",
        )
    positive = (
        "network.patch_size network.base_channels network.blocks_per_level network.head_channels "
        "diffusion.num_timesteps optimizer.learning_rate optimizer.epsilon "
        "training.batch_size training.steps "
        "training.steps_per_execution training.ema_every training.log_every training.sample_every "
        "training.sample_images training.sample_steps training.checkpoint_every training.keep_checkpoints "
        "training.grad_accum training.max_bad_steps training.eval_every training.eval_batches"
    )
    for key in positive.split():
        _require(_get(config, key) > 0, f"{key}={_get(config, key)}: use a number above 0")
    for key in (
        "optimizer.warmup_steps",
        "optimizer.clip_norm",
        "data.num_classes",
        "training.keep_every",
        "seed",
    ):
        _require(_get(config, key) >= 0, f"{key}={_get(config, key)}: use 0 or more")
    for key in (
        "network.dropout",
        "diffusion.label_dropout",
        "optimizer.beta_1",
        "optimizer.beta_2",
    ):
        _require(0 <= _get(config, key) < 1, f"{key}={_get(config, key)}: use a number from 0 up to 1")
    _require(
        0 <= config.training.ema_decay < 1,
        f"training.ema_decay={config.training.ema_decay}: use a number from 0 up to 1",
    )
    _require(config.seed < 2**31, f"seed={config.seed}: use a number below 2147483648")


def _validate_network(config: Config) -> None:
    network, (height, width, channels) = config.network, config.data.image_shape
    _require(
        min(height, width, channels) > 0,
        f"data.image_shape={config.data.image_shape}: use positive numbers",
    )
    levels = len(network.channel_multipliers)
    _require(
        levels > 0,
        "network.channel_multipliers is empty: give one multiplier for each level, such as 1,2,2",
    )
    factor = network.patch_size * 2 ** (levels - 1)
    for side, size in (("height", height), ("width", width)):
        nearest = max(factor, round(size / factor) * factor)
        _require(
            size % factor == 0,
            f"image {side} {size} does not divide by patch_size * 2^(levels - 1) = "
            f"{network.patch_size} * {2 ** (levels - 1)} = {factor}: resize to {nearest}, or use a smaller "
            "network.patch_size or fewer network.channel_multipliers",
        )
    _validate_widths(network, max(height, width) // network.patch_size)
    conditional = network.class_conditioning != "none"
    _require(
        not conditional or config.data.num_classes > 0,
        f"network.class_conditioning={network.class_conditioning} needs labels, and {config.data.dataset} "
        "has none: use network.class_conditioning=none",
    )


def _validate_widths(network: NetworkConfig, grid: int) -> None:
    for level, multiplier in enumerate(network.channel_multipliers):
        width = network.base_channels * multiplier
        _require(
            width > 0 and width % 32 == 0,
            f"network.base_channels * multiplier = {network.base_channels} * {multiplier:g} = {width:g}: "
            "every level's width must divide by 32, the number of normalization groups",
        )
        last = level == len(network.channel_multipliers) - 1
        attends = last or grid // 2**level in network.attention_resolutions
        _require(
            not attends or width % network.head_channels == 0,
            f"level {level} has {width:g} channels and attention, which must divide by "
            f"network.head_channels={network.head_channels}",
        )


def _validate_diffusion(config: Config) -> None:
    d = config.diffusion
    _require(
        0 < d.beta_start < d.beta_end < 1,
        f"diffusion.beta_start={d.beta_start}, diffusion.beta_end={d.beta_end}: they must satisfy "
        "0 < beta_start < beta_end < 1",
    )
    _require(
        0 <= d.t_start < d.t_stop <= d.num_timesteps,
        f"diffusion.t_start={d.t_start}, diffusion.t_stop={d.t_stop}: they must satisfy "
        f"0 <= t_start < t_stop <= num_timesteps = {d.num_timesteps}",
    )
    _require(
        config.training.sample_steps <= d.num_timesteps,
        f"training.sample_steps={config.training.sample_steps} is more than "
        f"diffusion.num_timesteps={d.num_timesteps}",
    )


def _validate_training(config: Config) -> None:
    training = config.training
    together = training.steps_per_execution
    for name in ("steps", "log_every", "sample_every", "checkpoint_every", "ema_every"):
        value = getattr(training, name)
        _require(
            value % together == 0,
            f"training.{name}={value} is not a multiple of training.steps_per_execution={together}: "
            f"use {math.ceil(value / together) * together}",
        )
    _require(
        training.eval_every % training.log_every == 0,
        f"training.eval_every={training.eval_every} is not a multiple of "
        f"training.log_every={training.log_every}",
    )
    _require(
        training.batch_size % training.grad_accum == 0,
        f"training.batch_size={training.batch_size} does not divide by "
        f"training.grad_accum={training.grad_accum}",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def _get(config: Config, dotted: str) -> typing.Any:
    value = config
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _dotted_types(cls: type) -> dict[str, typing.Any]:
    types = {}
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            types.update({f"{name}.{inner}": t for inner, t in _dotted_types(kind).items()})
        else:
            types[name] = kind
    return types


def _parse(text: str, kind: typing.Any, where: str) -> typing.Any:
    """Reads a value of type `kind` from a command-line word."""
    if typing.get_origin(kind) is tuple:
        return _convert([part for part in text.split(",") if part], kind, where)
    if kind is bool:
        known = {"true": True, "1": True, "false": False, "0": False}
        _require(text.lower() in known, f"{where}={text}: use true or false")
        return known[text.lower()]
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"{where}={text}: use {_article(kind)}") from error


def _convert(value: typing.Any, kind: typing.Any, where: str) -> typing.Any:
    """Checks a JSON value against `kind`; lists become tuples."""
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        _require(isinstance(value, list), f"{where}: use a list")
        if kinds[-1] is not Ellipsis:
            _require(len(value) == len(kinds), f"{where}: use {len(kinds)} values")
        parts = [
            _parse(v, kinds[0], where) if isinstance(v, str) else _convert(v, kinds[0], where) for v in value
        ]
        return tuple(parts)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _require(fits, f"{where}={value!r}: use {_article(kind)}")
    return value


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]


def _from_dict(cls: type, values: typing.Any, where: str) -> typing.Any:
    _require(isinstance(values, dict), f"{where}: expected an object with keys")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    _require(
        not unknown,
        f"{where}: unknown key {', '.join(unknown)}; it was written by another version of pdm_tf",
    )
    made = {}
    for name, value in values.items():
        kind, place = hints[name], f"{where}: {name}"
        made[name] = (
            _from_dict(kind, value, place) if dataclasses.is_dataclass(kind) else _convert(value, kind, place)
        )
    return cls(**made)
