"""The experiments: the paper's Tables 3 and 4, the embedded default, and a rule for any other data set."""

from __future__ import annotations

import math
import typing

from flags.config import Config, DataConfig, DiffusionConfig, NetworkConfig, OptimizerConfig, TrainingConfig
from flags.errors import UserError

DEFAULT_DATASET = "emoji64"
SPLIT_TIMESTEP = 396  # where the paper cuts ImageNet's process in two: SNR 0.25


class _Row(typing.NamedTuple):
    dataset: str
    variant: str | None  # patch size or split; None: the data set has one experiment
    base_channels: int
    multipliers: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]
    patch_size: int
    batch_size: int
    learning_rate: float
    beta_1: float
    beta_2: float
    warmup_steps: int
    steps: int
    beta_end: float
    t_range: tuple[int, int]


ALL, LOW, HIGH = (0, 1000), (0, SPLIT_TIMESTEP), (SPLIT_TIMESTEP, 1000)

# fmt: off
_ROWS = [
    #    data set       variant    c    multipliers         blocks attention P  batch  lr    b1   b2    warm-up   steps  beta_T t range   parameters
    _Row("lsun_church", "P=2",     128, (1, 2, 2, 4, 4),    2, (16, 8),      2, 128,   1e-4, 0.9, 0.99,  5000, 335_000, 0.02,  ALL),   # 122,916,120
    _Row("lsun_church", "P=4",     256, (1, 1, 2, 2),       2, (16, 8),      4, 256,   1e-4, 0.9, 0.99,  5000, 275_000, 0.02,  ALL),   # 121,416,544
    _Row("lsun_church", "P=8",     256, (1, 1.5, 2),        3, (16, 8),      8, 512,   1e-4, 0.9, 0.99,  5000, 215_000, 0.02,  ALL),   # 121,011,584
    _Row("imagenet256", "low",     256, (1, 2, 2, 2),       3, (16, 8),      4, 256,   1e-4, 0.9, 0.98,  5000, 500_000, 0.02,  LOW),   # 202,148,704
    _Row("imagenet256", "high",    256, (1, 2, 2, 2),       3, (16, 8),      4, 256,   5e-5, 0.9, 0.999, 10000, 500_000, 0.02, HIGH),  # 202,148,704
    _Row("ffhq1024",    None,      128, (1, 2, 2, 4, 4, 4), 2, (16, 8),      4,  32,   2e-5, 0.9, 0.98,  5000, 780_000, 0.025, ALL),   # 162,645,344
    # Made for two cores: about a hundred training images a second, and weights that ship as 12 MB of float16.
    _Row("emoji64",     None,       64, (2, 2, 2),          1, (8,),         4,  32,   3e-4, 0.9, 0.99,   200,  30_000, 0.02,  ALL),   #   5,792,672
]
# Any other data: patches, levels and labels follow from the images; see `general_preset`.
_OTHER = _Row("",       None,      128, (1, 2, 2, 2, 4, 4), 2, (16, 8),      4,  64,   1e-4, 0.9, 0.99,  5000, 200_000, 0.02,  ALL)

_DATA = {
    "emoji64":     DataConfig("emoji64", (64, 64, 3), num_classes=9),
    "lsun_church": DataConfig("lsun_church", (256, 256, 3)),
    "imagenet256": DataConfig("imagenet256", (256, 256, 3), num_classes=1000),
    "ffhq1024":    DataConfig("ffhq1024", (1024, 1024, 3)),
}

# Averages to make those of any length from (EDM2's two): where a run is short, the length is what goes wrong.
KEPT_LENGTHS = (0.05, 0.1)

# What the paper's experiments have at the config's defaults: its average, 250 ancestral steps, rare previews.
_EXTRA = {
    "emoji64": {
        # 0.99 every 100 steps, the paper's average, would be mostly the first weights for thousands of
        # steps: a short run averages more often and starts with a low decay that lets them go at once.
        "training.ema_decay": 0.995, "training.ema_every": 10, "training.ema_warmup": True,
        "training.eval_every": 1000, "training.sample_every": 1000, "training.checkpoint_every": 1000,
        "training.ema_lengths": KEPT_LENGTHS, "training.sample_images": 36, "training.score_every": 5000,
        # benchmarks/samplers: as near to the data as 250 ancestral steps, in a twelfth of the time.
        "sampling.sampler": "dpm_solver", "sampling.spacing": "logsnr", "sampling.steps": (20,),
    },
}
# fmt: on


def preset(dataset: str, patch_size: int | None = None, split: str | None = None) -> Config:
    """The experiment of a named data set.

    Args:
      dataset: "emoji64", "lsun_church", "imagenet256" or "ffhq1024".
      patch_size: chooses between lsun_church's networks of 2, 4 (the default) and 8; elsewhere it replaces
        the preset's own.
      split: "low" (the default) or "high" noise expert of imagenet256; None elsewhere.
    Raises:
      UserError: an unknown data set, or a split where there is none.
    """
    if split is not None and dataset != "imagenet256":
        raise UserError(
            f"--split={split} is for imagenet256; for {dataset} choose an expert's noise levels with "
            "--set=diffusion.t_start=... and --set=diffusion.t_stop=..."
        )
    if dataset not in _DATA:
        raise UserError(f"--dataset={dataset}: use {', '.join(_DATA)}, tfds:NAME or folder:PATH")
    variant = {"lsun_church": f"P={patch_size or 4}", "imagenet256": split or "low"}.get(dataset)
    rows = [row for row in _ROWS if row.dataset == dataset]
    for row in rows:
        if row.variant == variant:
            extra = _EXTRA.get(dataset, {})
            if patch_size is not None:
                extra = {**extra, "network.patch_size": patch_size}
            return _from_row(row, _DATA[dataset]).replace(extra)
    choices = ", ".join(str(row.variant) for row in rows)
    raise UserError(f"{dataset} has no preset for {variant}: the paper's are {choices}")


def general_preset(
    dataset: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    label_names: tuple[str, ...] = (),
    patch_size: int | None = None,
) -> Config:
    """A network that fits any data set: patches that leave a grid of about 32 to 64, levels down to about 8."""
    height, width, _ = image_shape
    shorter = min(height, width)
    if patch_size is None:
        fitting = [p for p in (8, 4, 2, 1) if height % p == 0 and width % p == 0 and shorter // p >= 32]
        patch_size = 4 if 4 in fitting and shorter <= 256 else (fitting or [1])[0]
    grid, levels = (height // patch_size, width // patch_size), 1
    while all(size % 2**levels == 0 for size in grid) and min(grid) >> levels >= 7:
        levels += 1
    row = _OTHER._replace(patch_size=patch_size, multipliers=_OTHER.multipliers[:levels])
    config = _from_row(row, DataConfig(dataset, image_shape, num_classes, label_names))
    return config.replace({"training.ema_lengths": KEPT_LENGTHS})


def _from_row(row: _Row, data: DataConfig) -> Config:
    return Config(
        data=data,
        network=NetworkConfig(
            patch_size=row.patch_size,
            base_channels=row.base_channels,
            class_conditioning="gate" if data.num_classes else "none",
            channel_multipliers=row.multipliers,
            blocks_per_level=row.blocks,
            attention_resolutions=row.attention,
        ),
        diffusion=DiffusionConfig(beta_end=row.beta_end, t_start=row.t_range[0], t_stop=row.t_range[1]),
        optimizer=OptimizerConfig(row.learning_rate, row.beta_1, row.beta_2, warmup_steps=row.warmup_steps),
        training=TrainingConfig(batch_size=row.batch_size, steps=row.steps),
    )


class _ViT(typing.NamedTuple):
    patch_size: int
    width: int
    depth: int
    bottleneck: int
    learning_rate: float


NETWORKS = ("unet", "vit", "vit_appendix_d")  # the data set's own U-Net; the stable ViT; the paper's
# fmt: off
# Of about the U-Net's forward cost. The rate is Li & He's 5e-5 for each 256 images a step, at width 768.
_VITS = {
    #                   P  width depth narrow  lr        parameters  GFLOPs (U-Net's)
    "emoji64":     _ViT(4,   128,    7,  32, 3e-4),  #   2,329,670     1.01 (1.05)
    "lsun_church": _ViT(8,   640,   11, 128, 5e-5),  #  87,297,180   143.63 (131.8)
    "imagenet256": _ViT(8,   768,   14, 128, 5e-5),  # 158,272,128   254.49 (250.5)
    "ffhq1024":    _ViT(32, 1024,   28, 256, 6e-6),  # 550,934,320   865.19 (840.9)
}
_STABLE = {
    "network.head_channels": 64, "network.norm": "rms", "network.norm_place": "before",
    "network.t_conditioning": "everywhere", "network.t_gates": True, "network.residual_scaling": "none",
    "network.qk_norm": True, "network.rope": True, "network.feed_forward": "swiglu",
    "diffusion.loss_weighting": "bounded_v", "diffusion.t_law": "logit_normal", "optimizer.beta_2": 0.95,
}
# "Our initial configuration": PostNorm, with the input again before the 4th, 8th and last of 11 layers. Its
# width is not told; this one has about the parameters of the U-Net of P = 8, which it is compared with.
_APPENDIX_D = {
    "network.patch_size": 8, "network.base_channels": 768, "network.depth": 11, "network.head_channels": 64,
    "network.norm": "layer", "network.norm_place": "after", "network.t_conditioning": "everywhere",
    "network.t_gates": False, "network.qk_norm": False, "network.rope": False, "network.feed_forward": "gelu",
    "network.input_injections": (4, 8, 11), "network.bottleneck": 0, "training.batch_size": 128,
    "optimizer.beta_2": 0.95, "optimizer.warmup_steps": 10_000,
}
# fmt: on


def network_settings(network: str, config: Config) -> dict[str, typing.Any]:
    """What another network than its U-Net changes of a data set's config, by dotted key.

    Args:
      network: one of `NETWORKS`.
      config: the data set's, with its U-Net.
    Raises:
      UserError: vit_appendix_d for other data than lsun_church.
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
        return {"network.kind": "vit", **_APPENDIX_D}
    vit, side = _VITS.get(dataset) or _vit_for(config), max(config.data.image_shape[:2])
    # Shifted to images below 256 pixels, the law would leave the noisiest t, where sampling begins, untrained.
    unshifted = DiffusionConfig().t_mean + min(0.0, math.log(side / 256))
    return {
        "network.kind": "vit", **_STABLE, "diffusion.t_mean": round(unshifted, 3),
        "network.patch_size": vit.patch_size,
        "network.base_channels": vit.width, "network.head_channels": 64 if vit.width >= 256 else 32,
        "network.depth": vit.depth, "network.bottleneck": vit.bottleneck,
        "network.class_conditioning": "tokens" if conditional else "none",
        "network.class_tokens_from": vit.depth // 3 + 1, "optimizer.learning_rate": vit.learning_rate,
    }  # fmt: skip


def _vit_for(config: Config) -> _ViT:
    """A ViT of about the cost of any U-Net of ours, of 1,024 tokens at most where its patches can grow.

    The U-Nets' forward pass takes about 700 FLOPs for each of their places and each squared base channel; a
    block of a ViT takes 24 for each token and squared channel, and 4 for each pair of tokens and channel.
    """
    network, (height, width, _) = config.network, config.data.image_shape
    patch = network.patch_size
    places = height * width // patch**2
    while height * width // patch**2 > 1024 and height % (2 * patch) == 0 and width % (2 * patch) == 0:
        patch *= 2
    depth, tokens = 12, height * width // patch**2
    cost, own, pairs = 700 * places * network.base_channels**2, 24 * depth * tokens, 4 * depth * tokens**2
    channels = max(64, 64 * round(((pairs**2 + 4 * own * cost) ** 0.5 - pairs) / (2 * own) / 64))
    rate = 5e-5 * config.training.batch_size / 256 * (768 / channels) ** 2
    return _ViT(patch, channels, depth, min(256, max(32, patch**2)), min(3e-4, rate))
