"""The experiments: the paper's Tables 3 and 4, those for two cores, and sizes for any other data set.

`pdm_tf.config.resolve` puts what a command gives over them.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping

from pdm_tf.config.fields import (
    Config,
    DataConfig,
    DiffusionConfig,
    DistillationConfig,
    NetworkConfig,
    OptimizerConfig,
    SamplingConfig,
    TrainingConfig,
)
from pdm_tf.config.words import replace, require
from pdm_tf.errors import UserError

DEFAULT_DATASET = DataConfig().dataset  # every mode's
MOST_ATTENTION = 1024  # places that any attention of other data's networks goes over
SPLIT_TIMESTEP = 396  # where the paper cuts ImageNet's process in two: SNR 0.25
ALL, LOW, HIGH = (0, 1000), (0, SPLIT_TIMESTEP), (SPLIT_TIMESTEP, 1000)

# fmt: off
_COLUMNS = (
    "network.base_channels", "network.channel_multipliers", "network.blocks_per_level", "network.attention_resolutions",
    "network.patch_size", "training.batch_size", "optimizer.learning_rate", "optimizer.beta_1", "optimizer.beta_2",
    "optimizer.warmup_steps", "training.steps", "diffusion.beta_end", "diffusion.t_start", "diffusion.t_stop",
)
# By data set and variant: patch size or split; None: the data set has one experiment.
_ROWS = {
    #                          c   multipliers         blocks attention P  batch  lr    b1   b2    warm-up   steps  beta_T t range    parameters
    ("lsun_church", "P=2"):  (128, (1, 2, 2, 4, 4),    2, (16, 8),      2, 128,   1e-4, 0.9, 0.99,  5000, 335_000, 0.02,  *ALL),   # 122,916,120
    ("lsun_church", "P=4"):  (256, (1, 1, 2, 2),       2, (16, 8),      4, 256,   1e-4, 0.9, 0.99,  5000, 275_000, 0.02,  *ALL),   # 121,416,544
    ("lsun_church", "P=8"):  (256, (1, 1.5, 2),        3, (16, 8),      8, 512,   1e-4, 0.9, 0.99,  5000, 215_000, 0.02,  *ALL),   # 121,011,584
    ("imagenet256", "low"):  (256, (1, 2, 2, 2),       3, (16, 8),      4, 256,   1e-4, 0.9, 0.98,  5000, 500_000, 0.02,  *LOW),   # 202,148,704
    ("imagenet256", "high"): (256, (1, 2, 2, 2),       3, (16, 8),      4, 256,   5e-5, 0.9, 0.999, 10000, 500_000, 0.02, *HIGH),  # 202,148,704
    ("ffhq1024", None):      (128, (1, 2, 2, 4, 4, 4), 2, (16, 8),      4,  32,   2e-5, 0.9, 0.98,  5000, 780_000, 0.025, *ALL),   # 162,645,344
    # Made for two cores: about a hundred training images a second, and weights that ship as 12 MB of float16.
    ("emoji64", None):       ( 64, (2, 2, 2),          1, (8,),         4,  32,   3e-4, 0.9, 0.99,   200,  30_000, 0.02,  *ALL),   #   5,792,672
    # Drawn faces at any size: a patch grows with the image, and the grid that the trunk works on does not.
    ("avatars32", None):     ( 64, (2, 2, 2),          1, (8,),         2,  32,   3e-4, 0.9, 0.99,   200,  30_000, 0.02,  *ALL),   #   5,709,656
    ("avatars64", None):     ( 64, (2, 2, 2),          1, (8,),         4,  32,   3e-4, 0.9, 0.99,   200,  30_000, 0.02,  *ALL),   #   5,792,672
    ("avatars256", None):    ( 64, (1.5, 2, 2),        1, (8,),         8,  16,   1e-3, 0.9, 0.99,   200,  30_000, 0.02,  *ALL),   #   5,492,032
    ("avatars1024", None):   ( 64, (1.5, 2, 2),        1, (8,),        32,  16,   1e-3, 0.9, 0.99,   200,  30_000, 0.02,  *ALL),   #  11,303,872
}


class _Size(typing.NamedTuple):
    base_channels: int
    multipliers: tuple[float, ...]
    blocks: int
    places: int  # most patches of an image: they, and not its pixels, are what the trunk costs
    attention: int  # most places that blocks attend over; the middle has up to MOST_ATTENTION in any case
    batch_size: int
    learning_rate: float
    clip_norm: float
    warmup_steps: int
    ema_every: int
    steps: int
    score_every: int
    network: str  # the trunk, where none is asked for


# Any other data: patches, levels and labels follow from the images; see `sized_preset`. tiny is what draws best
# after minutes to an hour of two cores, begun with avatars64's weights: FD after 5 minutes of one core is 302 of
# icons (from random weights 716; after an hour 158 and 176), 561 (929) of emoji, 523 (885) of wallpapers, 260
# (320) of clothes, 205 (510) of faces, and 760 (1340) of emoji of 256 pixels (docs/training.md). small and base
# are for accelerators and were not compared: the batches and rates of ADM and DiT (1e-4 at 256), taken down to
# theirs.
SIZES = {
    #              c    multipliers   blocks places attention batch lr    clip warm-up EMA  steps   scores network
    "tiny":  _Size(64,  (2, 2, 2),    1,     256,   64,       16,   1e-3, 1.0, 200,    10,  20_000, 5000,  "vit"),
    "small": _Size(64,  (1, 2, 2, 4), 2,     1024,  256,      32,   3e-4, 0.0, 1000,   20, 100_000, 0,     "unet"),
    "base":  _Size(128, (1, 2, 2, 2), 2,     4096,  256,      64,   1e-4, 0.0, 5000,   50, 200_000, 0,     "unet"),
}

_DATA = {
    "emoji64":     DataConfig("emoji64", (64, 64, 3), num_classes=9),
    "avatars32":   DataConfig("avatars32", (32, 32, 3), num_classes=9),
    "avatars64":   DataConfig("avatars64", (64, 64, 3), num_classes=9),
    "avatars256":  DataConfig("avatars256", (256, 256, 3), num_classes=9),
    "avatars1024": DataConfig("avatars1024", (1024, 1024, 3), num_classes=9),
    "lsun_church": DataConfig("lsun_church", (256, 256, 3)),
    "imagenet256": DataConfig("imagenet256", (256, 256, 3), num_classes=1000),
    "ffhq1024":    DataConfig("ffhq1024", (1024, 1024, 3)),
}

MOST_SCORED = 50_000  # training images that other data's scores are compared with by default: some minutes
PAPERS = ("lsun_church", "imagenet256", "ffhq1024")  # whose experiments are exactly the paper's

# Of emoji64's weights FD 590 where 250 ancestral steps reach 550, in a twelfth of the time (docs/evaluation.md).
FAST_SAMPLING = SamplingConfig("dpm_solver", (20,), "logsnr")

# fmt: on

# Runs of hours rather than days.
_SHORT = {
    # 0.99 every 100 steps, the paper's average, would be mostly the first weights for thousands of
    # steps: a short run averages more often and starts with a low decay that lets them go at once.
    "training.ema_decay": 0.995,
    "training.ema_every": 10,
    "training.ema_warmup": True,
    "training.eval_every": 1000,
    "training.sample_every": 1000,
    "training.checkpoint_every": 1000,
    "training.sample_images": 36,
    "training.score_every": 5000,
    "sampling": FAST_SAMPLING,
}


def _for_large_images(side: int) -> dict[str, typing.Any]:
    """Noise and weighting under which an image averaged down to 64 pixels is as noisy as one of 64 pixels."""
    return {
        "diffusion.schedule": "shifted_cosine",
        "diffusion.loss_weighting": "bounded_v",
        "diffusion.loss_bias": round(-2 * math.log(side / 64), 2),
        "optimizer.clip_norm": 1.0,
    }


# What differs from the config's defaults; those are the paper's average, 250 ancestral steps, rare previews.
_EXTRA = {
    "imagenet256": {"sampling.guidance": 1.5},  # its FID is reported with w = 1.5 and 2.25
    "ffhq1024": {"sampling.steps": (1000,)},  # Figure 9's pictures take all steps
    **dict.fromkeys(("emoji64", "avatars32", "avatars64"), _SHORT),
    # After 400 steps these draw clearer shapes and colours than linear or sqrt_snr (docs/avatars.md).
    "avatars256": {**_SHORT, **_for_large_images(256)},
    "avatars1024": {**_SHORT, **_for_large_images(1024)},
}


def is_named(dataset: str) -> bool:
    """Whether a data set has a preset; others say themselves what their images are."""
    return not dataset.startswith(("tfds:", "folder:"))


def preset(dataset: str, patch_size: int | None = None, split: str | None = None) -> Config:
    """The experiment of a named data set.

    Args:
      patch_size: chooses between lsun_church's networks of 2, 4 (the default) and 8; any other replaces the
        preset's.
      split: "low" (the default) or "high" noise expert of imagenet256; None elsewhere.
    """
    if dataset not in _DATA:
        raise UserError(f"--dataset={dataset}: use {', '.join(_DATA)}, tfds:NAME or folder:PATH")
    default = {"lsun_church": "P=4", "imagenet256": split or "low"}.get(dataset)
    row = _ROWS.get((dataset, f"P={patch_size}")) or _ROWS[dataset, default]
    data = _DATA[dataset]
    settings = {
        "network.class_conditioning": "gate" if data.num_classes else "none",
        **dict(zip(_COLUMNS, row)),
    }
    config = Config(data=data).replace(settings).replace(_EXTRA.get(dataset, {}))
    return config.replace({"network.patch_size": patch_size}) if patch_size else config


# --- any other data -------------------------------------------------------------------------------


def sized_preset(size: str, data: DataConfig, given: Mapping[str, typing.Any]) -> Config:
    """A network of some size that fits any data set.

    Patches are as small as the size's number of places allows, so that the trunk costs the same however
    large the images (the paper's point). There are two levels at least, and attention over 1,024 places at
    most. `given` are settings by dotted key, of the data too.
    """
    row, data = SIZES[size], replace(data, {k[5:]: v for k, v in given.items() if k.startswith("data.")})
    height, width, channels = data.image_shape
    require(
        None not in data.image_shape,
        f"the images of {data.dataset} differ in size: say which to crop and resize them to, as in "
        f"--set=data.image_shape=64,64,{channels}",
    )
    multipliers = given.get("network.channel_multipliers")
    halvings = 1 if multipliers is None else max(len(multipliers) - 1, 0)
    patch_size = given.get("network.patch_size") or _patch_size(height, width, row.places, halvings)
    if patch_size is None:
        raise UserError(_convert_first(data, row.places, halvings))
    grid = (height // patch_size, width // patch_size)
    if multipliers is None:
        multipliers = _multipliers(grid, row.multipliers)
    base_channels = given.get("network.base_channels", row.base_channels)
    attention = tuple(
        max(grid) >> level
        for level in range(len(multipliers))
        if 1 <= math.prod(grid) // 4**level <= row.attention
    )
    config = Config(
        data=data,
        network=NetworkConfig(
            patch_size=patch_size,
            base_channels=base_channels,
            class_conditioning="gate" if data.num_classes else "none",
            channel_multipliers=multipliers,
            blocks_per_level=row.blocks,
            attention_resolutions=attention,
            head_channels=64 if all(base_channels * m % 64 == 0 for m in multipliers) else 32,
        ),
        optimizer=OptimizerConfig(row.learning_rate, warmup_steps=row.warmup_steps, clip_norm=row.clip_norm),
        training=TrainingConfig(
            batch_size=row.batch_size,
            steps=row.steps,
            ema_decay=0.995,
            ema_every=row.ema_every,
            ema_warmup=True,
            score_every=row.score_every,
            score_images=128,
        ),
        sampling=FAST_SAMPLING,
    )
    if size == "tiny" and max(height, width) > 64:
        config = config.replace(_for_large_images(max(height, width)))
    return config.replace(given)


def _patch_size(height: int, width: int, places: int, halvings: int) -> int | None:
    """The smallest P that leaves at most `places`, and not under a quarter of them, to halve so often.

    Patches of one pixel are for small images: from 48 x 48 on they cost four times those of two.
    """
    factor, pixels = 2**halvings, height * width
    fitting = [
        p
        for p in range(1, math.gcd(height, width) + 1)
        if height % (p * factor) == width % (p * factor) == 0
        and min(places, pixels) / 4 <= pixels // p**2 <= places
    ]
    least = 1 if pixels <= 48**2 else 2
    return next((p for p in fitting if p >= least), fitting[0] if fitting else None)


def _multipliers(grid: tuple[int, int], of_size: tuple[float, ...]) -> tuple[float, ...]:
    """One multiplier a level: down to a grid of about 4, and further while attention would be too dear."""
    levels = 1
    while all(side % 2**levels == 0 for side in grid) and (
        levels == 1
        or (levels < len(of_size) and min(grid) >> levels >= 4)
        or math.prod(grid) // 4 ** (levels - 1) > MOST_ATTENTION
    ):
        levels += 1
    return (*of_size, *[of_size[-1]] * levels)[:levels]


def _convert_first(data: DataConfig, places: int, halvings: int) -> str:
    """What to do about images that no patch size fits."""
    height, width, channels = data.image_shape
    most = math.sqrt(height * width / places)
    for patch_size in (max(math.floor(most), 1), math.ceil(most)):
        factor = patch_size * 2**halvings
        fitting = [max(side // factor, 1) * factor for side in (height, width)]
        if math.prod(fitting) <= places * patch_size**2:
            break
    return (
        f"images of {height} x {width} do not divide into at most {places:,} patches that can be halved; a "
        f"size that does is {fitting[0]} x {fitting[1]}: convert them with python -m data_tools.image_folder "
        f"--input IMAGES --output FOLDER --resolution {fitting[0]}x{fitting[1]} (where they differ in size: "
        f"--set=data.image_shape={fitting[0]},{fitting[1]},{channels})"
    )


# --- students of few steps ------------------------------------------------------------------------

_TRAILING = {"even": "trailing", "logsnr": "logsnr_trailing"}


def student(teacher: Config, given: Mapping[str, typing.Any]) -> Config:
    """What a teacher's student is trained with: its network, in steps spaced as it likes them.

    Of experts `teacher` is the first named, with whose weights the student begins.
    """
    folders = given["distillation.teacher"]
    require(
        teacher.diffusion.t_stop == teacher.diffusion.num_timesteps,
        f"{folders[0]} cannot draw from noise, and the student begins with its weights: name the teacher's "
        "expert for the most noise first",
    )
    spacing = teacher.sampling.spacing
    made = DistillationConfig(folders, spacing=_TRAILING.get(spacing, spacing))
    if teacher.is_student:  # it has no more steps than that
        made = replace(made, {"steps": 1, "first": teacher.distillation.steps})
    config = teacher.replace(
        {
            "data.augmentation": 0.0,
            "data.crop": 0,
            "diffusion.t_start": 0,
            "diffusion.t_stop": teacher.diffusion.num_timesteps,
            # Whatever the noise, what a step leaves of the error in x is about the image's error.
            "diffusion.loss_weighting": "constant",
            "optimizer.cooldown_steps": 0,
            "training.minutes": 0.0,
            "training.precision": "auto",
            "training.ema_decay": 0.95,
            "training.ema_every": 10,
            "training.ema_warmup": True,
            "training.ema_lengths": (),
            "training.warm_start": folders[0],
            "distillation": made,
        }
    ).replace({key: value for key, value in given.items() if key.startswith("distillation.")})
    made = config.distillation
    taken = teacher.distillation
    if teacher.is_student and (made.first, made.spacing) != (taken.steps, taken.spacing):
        raise UserError(
            f"the teacher is a student itself, of {taken.steps} steps: use distillation.first={taken.steps} "
            f"and distillation.spacing={taken.spacing}"
        )
    length = {"training.steps": made.phase_steps * (made.phases + 1)}
    return config.replace({**length, "sampling": SamplingConfig("ddim", (made.steps,), made.spacing)})


# --- the length of a run --------------------------------------------------------------------------


def fitted_to_length(config: Config, given: Mapping[str, typing.Any]) -> Config:
    """The config with warm-up and periods that fit the run's length, where they are not given.

    The length L is training.steps, or one step for each second of training.minutes where that is less. At most:
      L / 10 steps of warm-up;
      L / 30 between two updates of the averages, whose first weights then no longer count, and two log lines;
      L / 30, but 100 or more, between two evaluations, and two checkpoints;
      L / 10, but 500 or more, between two previews;
      L / 6, but 1,000 or more, between two scores.
    No period is longer than the preset's, and all are multiples of training.steps_per_execution.
    """
    t = config.training
    length = min(t.steps, math.ceil(60 * t.minutes)) if t.minutes else t.steps

    def period(steps: float, most: int) -> int:
        """The largest of 1, 2, 5, 10, 20 ... within both, in whole executions."""
        steps = min(max(steps, 1), most)
        power = 10 ** math.floor(math.log10(steps))
        nice = max(power * digit for digit in (1, 2, 5) if power * digit <= steps)
        return math.ceil(nice / t.steps_per_execution) * t.steps_per_execution

    log_every = period(length / 30, t.log_every)
    if "training.eval_every" in given and "training.log_every" not in given:
        log_every = math.gcd(log_every, t.eval_every)
    log_every = given.get("training.log_every", log_every)
    eval_every = math.ceil(period(max(length / 30, 100), t.eval_every) / log_every) * log_every
    derived = {
        "optimizer.warmup_steps": min(config.optimizer.warmup_steps, math.ceil(length / 10)),
        "training.ema_every": period(length / 30, t.ema_every),
        "training.log_every": log_every,
        "training.eval_every": eval_every,
        "training.checkpoint_every": eval_every,
        "training.sample_every": period(max(length / 10, 500), t.sample_every),
    }
    if t.score_every:
        derived["training.score_every"] = period(max(length / 6, 1000), t.score_every)
    return config.replace({k: v for k, v in derived.items() if k not in given})


class _ViT(typing.NamedTuple):
    patch_size: int | None  # None: the U-Net's
    width: int
    depth: int
    bottleneck: int
    learning_rate: float


# The data set's own U-Net; the stable ViT; the paper's; an expert for little noise, which is learnt from crops.
NETWORKS = ("unet", "vit", "vit_appendix_d", "local")
# fmt: off
# Of about the U-Net's forward cost, but those of larger avatars, which are avatars64's on patches that are as many
# times as large as the images, so that each begins with the smaller one's weights. The rate is Li & He's 5e-5 for
# each 256 images a step, at width 768; theirs is what they were trained at.
_VITS = {
    #                   P  width depth narrow  lr        parameters  GFLOPs (U-Net's)
    "emoji64":     _ViT(4,   128,    7,  32, 3e-4),  #   2,329,670     1.01 (1.05)
    "avatars64":   _ViT(4,   128,    7,  32, 3e-4),  #   2,329,670     1.01 (1.05)
    "tiny":        _ViT(None, 128,   7,  32, 1e-3),  # as avatars64's and 256's, which it begins with
    "avatars256":  _ViT(16,  128,    7,  32, 1e-3),  #   2,538,470     1.12 (3.62)
    "avatars1024": _ViT(64,  128,    7,  32, 1e-3),  #   5,879,270     2.83 (15.5)
    "lsun_church": _ViT(8,   640,   11, 128, 5e-5),  #  87,297,180   143.63 (131.8)
    "imagenet256": _ViT(8,   768,   14, 128, 5e-5),  # 158,272,128   254.49 (250.5)
    "ffhq1024":    _ViT(32, 1024,   28, 256, 6e-6),  # 550,934,320   865.19 (840.9)
}
# fmt: on

_STABLE = {  # beside the config's defaults, which are its blocks
    "diffusion.loss_weighting": "bounded_v",
    "diffusion.t_distribution": "logit_normal",
    "optimizer.beta_2": 0.95,
}
# For larger images, whose process is shifted: a t means the noise that it means for avatars64, averaged down, so
# that its ViT can start theirs; more of the training is at less noise, where the finer lines are learnt.
_STABLE_SHIFTED = {"diffusion.schedule": "shifted_linear", "diffusion.t_mean": -1.8, "diffusion.t_std": 0.95}
# "Our initial configuration": PostNorm, with the input again before the 4th, 8th and last of 11 layers. Its
# width is not stated; this one has about the parameters of the U-Net of P = 8, which it is compared with.
APPENDIX_D = {
    "network.patch_size": 8,
    "network.base_channels": 768,
    "network.depth": 11,
    "network.norm": "layer",
    "network.norm_place": "after",
    "network.t_gates": False,
    "network.qk_norm": False,
    "network.rope": False,
    "network.feed_forward": "gelu",
    "network.input_injections": (4, 8, 11),
    "training.batch_size": 128,
    "optimizer.beta_2": 0.95,
    "optimizer.warmup_steps": 10_000,
}


# The expert's process is that of the ViT which does the other t. It predicts x: narrower than a patch, it could
# not tell all of its noise, as v asks. avatars1024's, which ships.
_LOCAL = {
    "network.kind": "unet",
    "network.local": True,
    "network.base_channels": 64,
    "network.channel_multipliers": (1, 1.5, 1.5),
    "network.blocks_per_level": 1,
    "network.attention_resolutions": (),
    "diffusion.prediction": "x",
    "diffusion.loss_weighting": "bounded_v",
    "diffusion.t_stop": 30,
    "diffusion.t_distribution": "uniform",
    "optimizer.learning_rate": 1e-3,
    "optimizer.clip_norm": 1.0,
}


def network_settings(network: str, config: Config, size: str | None = None) -> dict[str, typing.Any]:
    """What one of `NETWORKS` changes of the config of a data set's U-Net, by dotted key.

    `size` is that of the U-Net, for data without a preset. UserError if vit_appendix_d is for other data than
    lsun_church.
    """
    if network == "unet":
        return {}
    dataset, conditional = config.data.dataset, config.conditional
    if network == "vit_appendix_d":
        if dataset != "lsun_church":
            raise UserError(
                f"--network=vit_appendix_d is for lsun_church, and the data set is {dataset}: use "
                "--network=vit, and Appendix D's options as --set=network.norm_place=after and others"
            )
        return {"network.kind": "vit", **APPENDIX_D}
    shifted = config.diffusion.schedule.startswith("shifted")
    if network == "local":
        height, width, _ = config.data.image_shape
        patch_size = 8 if min(height, width) >= 512 and not (height % 32 or width % 32) else 4
        return {
            **_LOCAL,
            "data.crop": min(32 * patch_size, height, width),
            "network.patch_size": patch_size,
            "network.class_conditioning": "embedding" if conditional else "none",
            "diffusion.schedule": "shifted_linear" if shifted else config.diffusion.schedule,
        }
    vit, side = _VITS.get(size or dataset) or _vit_for(config), max(config.data.image_shape[:2])
    if shifted:
        process = _STABLE_SHIFTED
    else:
        # A mean shifted below 256 pixels too would leave the noisiest t, where sampling begins, untrained.
        process = {"diffusion.t_mean": round(DiffusionConfig().t_mean + min(0.0, math.log(side / 256)), 3)}
    return {
        **_STABLE,
        **process,
        "network.kind": "vit",
        "network.patch_size": vit.patch_size or config.network.patch_size,
        "network.base_channels": vit.width,
        "network.head_channels": 64 if vit.width >= 256 else 32,
        "network.depth": vit.depth,
        "network.bottleneck": vit.bottleneck,
        "network.class_conditioning": "tokens" if conditional else "none",
        "network.class_tokens_from": vit.depth // 3 + 1,
        "optimizer.learning_rate": vit.learning_rate,
    }


# What the tiny ViT's pictures are after so many training images: 250 steps of 16 on colour emoji, 766 on other
# rendered pictures, both begun with avatars64's weights, and avatars64's own 5,600.
LOOKS = {4_000: "flat shapes", 12_000: "things that one recognizes", 90_000: "sharp pictures"}
SHIPPED = {4: "avatars64", 16: "avatars256"}  # by P: whose weights other data's ViT begins with


def shipped_weights(config: Config) -> str:
    """The name in `SHIPPED`, of about its patches, that other data's network can begin with; "" if none.

    Its network is theirs up to labels, patches and colours.
    """
    name = SHIPPED[16 if config.network.patch_size > 8 else 4]
    shipped = preset(name)
    shipped = shipped.replace(network_settings("vit", shipped))
    d = config.diffusion
    own = config.network
    there = shipped.network
    vit = [key[8:] for key in shipped.used_keys if key.startswith("network.")]
    same = {name for name in vit if getattr(own, name) == getattr(there, name)}
    fits = (
        own.kind == there.kind
        and same >= set(vit) - {"patch_size", "class_conditioning", "dropout"}
        and config.data.image_shape[-1] in (1, 3)
        and (d.prediction, d.num_timesteps) == ("x", shipped.diffusion.num_timesteps)
    )
    return name if fits else ""


def _vit_for(config: Config) -> _ViT:
    """A ViT of about the cost of any U-Net of ours, of 1,024 tokens at most where its patches can grow.

    At each place and squared channel of a level a U-Net takes 36 FLOPs for an encoder block, 58 for a decoder
    block, which also sees a skip, and 36 for the ways down and up. A block of a ViT takes 24 for each token
    and squared channel, and 4 for each pair of tokens and channel. There are 7 to 13 blocks.
    """
    network, (height, width, _) = config.network, config.data.image_shape
    patch, blocks = network.patch_size, network.blocks_per_level
    places = height * width // patch**2
    while height * width // patch**2 > 1024 and height % (2 * patch) == 0 and width % (2 * patch) == 0:
        patch *= 2
    cost = (36 * blocks + 58 * (blocks + 1) + 36) * sum(
        places / 4**level * (network.base_channels * multiplier) ** 2
        for level, multiplier in enumerate(network.channel_multipliers)
    )
    tokens = height * width // patch**2
    squared = 24 * tokens  # a block's FLOPs: squared * channels^2 + pairs * channels
    pairs = 4 * tokens**2
    wanted = cost / 12
    channels = max(64, 64 * round(((pairs**2 + 4 * squared * wanted) ** 0.5 - pairs) / (2 * squared) / 64))
    depth = max(4, round(cost / (squared * channels**2 + pairs * channels)))
    rate = 5e-5 * config.training.batch_size / 256 * (768 / channels) ** 2
    return _ViT(patch, channels, depth, min(256, max(32, patch**2)), min(3e-4, rate))
