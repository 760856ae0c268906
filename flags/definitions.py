"""The command line: absl flags, and the config that they name."""

from __future__ import annotations

import os
import typing

from absl import flags

from flags.config import Config, parse_settings, validate
from flags.errors import UserError
from flags.presets import DEFAULT_DATASET, general_preset, preset

MODES = ("train", "sample", "export", "describe")
STRATEGIES = ("auto", "cpu", "mirrored", "multi_worker", "tpu")
SAMPLERS = ("ancestral", "ddim", "dpm_solver")
SCHEDULES = ("even", "logsnr")
VARIANCES = ("learned", "small", "large")
FLAGS = flags.FLAGS

flags.DEFINE_enum("mode", "train", MODES, "What to do.")
flags.DEFINE_string(
    "dataset", None,
    "The data set, which also picks the preset: emoji64 (the default), lsun_church, imagenet256, ffhq1024, "
    "tfds:NAME, or folder:PATH for a data set made by data_tools.",
)  # fmt: skip
flags.DEFINE_string(
    "run_dir", None,
    "The run's folder; runs/<dataset> by default. To sample, also several: the experts of one model.",
)  # fmt: skip
flags.DEFINE_string("data_dir", "data", "Where named data sets lie.")
flags.DEFINE_integer("seed", None, "Seed of everything random; 0 by default.", 0, 2**31 - 1)
flags.DEFINE_enum("strategy", "auto", STRATEGIES, "Where to compute.")
flags.DEFINE_integer("patch_size", None, "P; picks the preset for lsun_church (2, 4 or 8).", lower_bound=1)
flags.DEFINE_enum("split", None, ("low", "high"), "Which of imagenet256's two networks; low by default.")
flags.DEFINE_string("prediction", None, "What the network predicts: x, eps or v.")
flags.DEFINE_integer("train_steps", None, "Steps to train, in all.", lower_bound=1)
flags.DEFINE_integer("batch_size", None, "Images a step, over all replicas.", lower_bound=1)
flags.DEFINE_integer("grad_accum", None, "Parts that a replica's batch is worked off in.", lower_bound=1)
flags.DEFINE_string("warm_start", None, "Run folder whose EMA weights a new run starts from.")
flags.DEFINE_multi_string("set", [], "Any other field of the config, as key=value; repeatable.")

flags.DEFINE_integer("num_samples", 16, "Images to draw.", lower_bound=1)
flags.DEFINE_integer("sample_batch_size", 16, "Images to draw at a time.", lower_bound=1)
flags.DEFINE_string("steps", "250", "Sampling steps, evenly spaced; or one count a section: 90,60,60,20,20.")
flags.DEFINE_enum("schedule", "even", SCHEDULES, "Space the steps evenly in t or in log-SNR.")
flags.DEFINE_enum("sampler", "ancestral", SAMPLERS, "How to sample.")
flags.DEFINE_enum("variance", None, VARIANCES, "Of ancestral steps: learned (default), small or large.")
flags.DEFINE_float("eta", None, "Noise of DDIM's steps, 0 (default) to 1.", 0.0, 1.0)
flags.DEFINE_float("guidance", 1.0, "Weight w of classifier-free guidance; 1 is without.")
flags.DEFINE_list("labels", None, "Labels to draw, numbers or names, in turn; by default all classes.")
flags.DEFINE_string("init_image", None, "An image file to edit.")
flags.DEFINE_float("strength", None, "How much of it to change, 0 to 1; 0.5 by default.", 0.0, 1.0)
flags.DEFINE_string("mask", None, "A mask file: white where --init_image is to be painted anew.")
flags.DEFINE_integer("jump_length", None, "Steps to go back at a time for --mask; 10 by default.", 1)
flags.DEFINE_integer("resamplings", None, "Times to go over each step for --mask; 10 by default.", 1)
flags.DEFINE_integer("trajectory", None, "Also draw x_theta at this many steps of the way.", lower_bound=1)
flags.DEFINE_bool("jit_compile", False, "Compile sampling with XLA (for accelerators).")
flags.DEFINE_string(
    "out", None,
    "Folder for what the mode makes: <run_dir>/samples by default, exports/<the run's name> for an export.",
)  # fmt: skip
flags.DEFINE_bool("save_pngs", False, "Write one PNG for each sample too.")


class DataInfo(typing.Protocol):
    """What the config takes from a data set that is not one of the named presets."""

    image_shape: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...]


def dataset_name() -> str:
    """The data set that was asked for, or the default."""
    return FLAGS.dataset or DEFAULT_DATASET


def is_named(dataset: str) -> bool:
    """Whether the data set has a preset of its own; others tell their shape themselves."""
    return not dataset.startswith(("tfds:", "folder:"))


def run_dir() -> str:
    """The run's folder."""
    if FLAGS.run_dir:
        return FLAGS.run_dir
    name = dataset_name()
    if name.startswith("tfds:"):
        name = name.split(":")[1].replace("/", "-")  # tfds:NAME/CONFIG:VERSION
    elif name.startswith("folder:"):
        name = os.path.basename(os.path.normpath(name.partition(":")[2]))
    return f"runs/{name}_{FLAGS.split}" if FLAGS.split else f"runs/{name}"


def config_from_flags(info: DataInfo | None = None) -> Config:
    """The validated config of the command line; `info` describes a data set without a preset.

    Raises:
      UserError: something cannot work.
    """
    dataset = dataset_name()
    if is_named(dataset):
        config = preset(dataset, FLAGS.patch_size, FLAGS.split)
    else:
        config = general_preset(
            dataset, info.image_shape, info.num_classes, info.label_names, FLAGS.patch_size
        )
    shortcuts = {
        "seed": FLAGS.seed,
        "diffusion.prediction": FLAGS.prediction,
        "training.steps": FLAGS.train_steps,
        "training.batch_size": FLAGS.batch_size,
        "training.grad_accum": FLAGS.grad_accum,
        "training.warm_start": FLAGS.warm_start,
    }
    given = {key: value for key, value in shortcuts.items() if value is not None}
    return validate(config.replace({**given, **parse_settings(FLAGS.set)}))


def run_dirs() -> list[str]:
    """The folders of the run, or of the experts, to sample from.

    Raises:
      UserError: --run_dir names none.
    """
    folders = [part for part in run_dir().split(",") if part]
    if not folders:
        raise UserError(
            f"--run_dir={FLAGS.run_dir} names no folder: give a run's, or experts' with a comma between"
        )
    return folders


def export_dir() -> str:
    """The folder of an export."""
    return FLAGS.out or "exports/" + "_".join(os.path.basename(os.path.normpath(run)) for run in run_dirs())


def export_settings(config: Config) -> dict[str, typing.Any]:
    """The sampler's settings that an export fixes.

    Raises:
      UserError: a flag that an export cannot fix, or what `sampling_settings` refuses.
    """
    for name in ("seed", "labels", "guidance", "init_image", "mask", "trajectory", "jit_compile"):
        if FLAGS[name].present:
            raise UserError(
                f"--{name} is for --mode=sample: an export fixes sampler and steps, and each call gives it "
                "seed, labels and guidance; leave the flag out"
            )
    settings = sampling_settings(config)
    return {key: settings[key] for key in settings if key not in ("guidance", "jit_compile")}


def sampling_settings(config: Config) -> dict[str, typing.Any]:
    """The sampler's settings, but for the images to edit.

    Raises:
      UserError: a flag without the one that it belongs to, or steps or a weight that cannot work.
    """
    _refuse_lonely_flags()
    if FLAGS.guidance != 1.0 and config.network.class_conditioning == "none":
        raise UserError(
            f"--guidance={FLAGS.guidance:g}: this model has no classes to guide with; leave the flag out"
        )
    optional = ("variance", "eta", "strength", "jump_length", "resamplings")
    settings = {name: FLAGS[name].value for name in optional if FLAGS[name].value is not None}
    if FLAGS.init_image and not FLAGS.mask:
        settings.setdefault("strength", 0.5)
    return {
        "sampler": FLAGS.sampler,
        "sections": sampling_sections(config.diffusion.num_timesteps),
        "spacing": FLAGS.schedule,
        "guidance": FLAGS.guidance,
        "jit_compile": FLAGS.jit_compile,
        **settings,
    }


def _refuse_lonely_flags() -> None:
    """Refuses flags that would do nothing, so that nobody thinks they did something."""
    ancestral, ddim = FLAGS.sampler == "ancestral", FLAGS.sampler == "ddim"
    needs = {
        "variance": (ancestral, "--sampler=ancestral"),
        "eta": (ddim, "--sampler=ddim"),
        "strength": (FLAGS.init_image, "an --init_image"),
        "mask": (FLAGS.init_image and ancestral, "an --init_image and --sampler=ancestral"),
        "jump_length": (FLAGS.mask, "a --mask"),
        "resamplings": (FLAGS.mask, "a --mask"),
    }
    for name, (present, needed) in needs.items():
        if FLAGS[name].value is not None and not present:
            raise UserError(f"--{name} needs {needed}: give it, or leave --{name} out")


def sampling_sections(num_timesteps: int) -> tuple[int, ...]:
    """`--steps` as the number of steps in each section of the process.

    Raises:
      UserError: not numbers, or more steps than the process has.
    """
    try:
        sections = tuple(int(part) for part in FLAGS.steps.split(","))
    except ValueError as error:
        raise UserError(
            f"--steps={FLAGS.steps}: write a number, or one for each section: 90,60,60,20,20"
        ) from error
    if FLAGS.schedule == "logsnr" and len(sections) > 1:
        raise UserError(f"--steps={FLAGS.steps}: --schedule=logsnr takes one number of steps")
    largest = num_timesteps // len(sections)
    if min(sections) < 1 or max(sections) > largest:
        raise UserError(
            f"--steps={FLAGS.steps}: the process has {num_timesteps} steps, so use 1 to {largest} in each of "
            f"{len(sections)} section{'s' if len(sections) > 1 else ''}"
        )
    return sections


def sampling_labels(config: Config) -> list[int] | None:
    """`--labels` as class numbers, or None for all classes in turn.

    Raises:
      UserError: an unknown name, a number out of range, or a model without classes.
    """
    if not FLAGS.labels:
        return None
    if config.network.class_conditioning == "none":
        raise UserError("--labels: this model has no classes; leave the flag out")
    names = {name.lower(): number for number, name in enumerate(config.data.label_names)}
    labels = []
    for text in FLAGS.labels:
        number = names.get(text.strip().lower(), text)
        if not str(number).strip().isdigit() or int(number) >= config.data.num_classes:
            known = f"0 to {config.data.num_classes - 1}" + (
                f" or {', '.join(config.data.label_names)}" if names else ""
            )
            raise UserError(f"--labels: there is no class {text!r}; use {known}")
        labels.append(int(number))
    return labels
