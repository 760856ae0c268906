"""The command line: absl flags, each of some modes, and the config that they name."""

from __future__ import annotations

import difflib
import os
import re
import typing
import unicodedata

from absl import flags

from pdm_tf.config.fields import (
    ANALYSES,
    DRAWN,
    EMA_LENGTHS,
    MEASURED,
    SAMPLE,
    TOGETHER,
    Config,
    DataConfig,
    SamplingConfig,
    check_sampling,
    parse_settings,
    validate,
)
from pdm_tf.config.presets import (
    DEFAULT_DATASET,
    DERIVED_FROM_LENGTH,
    DERIVED_FROM_SIZE,
    NETWORK,
    NETWORKS,
    PAPERS,
    SIZES,
    fitted_to_length,
    network_settings,
    preset,
    refuse_split,
    sized_preset,
)
from pdm_tf.config.words import Leaf, check_values, get, leaves, parse, replace
from pdm_tf.errors import UserError
from pdm_tf.sampling.edit import Edit

MODES = ("train", "sample", "evaluate", "analyze", "export", "page", "describe")
FORMATS = ("saved_model", "safetensors")
STRATEGIES = ("auto", "cpu", "mirrored", "multi_worker", "tpu")
TRAIN, EVALUATE, ANALYZE, PAGE = ("train", "describe"), ("evaluate",), ("analyze",), ("page",)
FLAGS = flags.FLAGS
_MODES_OF: dict[str, tuple[str, ...]] = {"mode": MODES}


def _define(define: typing.Callable, modes: tuple[str, ...], name: str, default, *args, **kwargs) -> None:
    define(name, default, *args, **kwargs)
    _MODES_OF[name] = modes


def _define_sampling(name: str, leaf: Leaf) -> None:
    """A flag for a field of the config's `sampling`, whose default is the run's own value."""
    rule, help = leaf.rule, f"{leaf.rule.help} By default as the run has it."
    if rule.choices:
        _define(flags.DEFINE_enum, rule.modes, name, None, rule.choices, help)
    elif leaf.kind is float:
        _define(flags.DEFINE_float, rule.modes, name, None, help, rule.least, rule.most)
    elif leaf.kind is int:
        _define(flags.DEFINE_integer, rule.modes, name, None, help, rule.least, rule.most)
    elif leaf.kind is bool:
        _define(flags.DEFINE_bool, rule.modes, name, None, help)
    else:
        _define(flags.DEFINE_string, rule.modes, name, None, help)


flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_string, _integer, _enum = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
_define(
    _string, MODES, "dataset", None,
    f"The data set, which also picks the preset: {DEFAULT_DATASET} (the default), avatars32 (or 256, "
    "1024), emoji64, lsun_church, imagenet256, ffhq1024, tfds:NAME, or folder:PATH for a data set made by "
    "data_tools.",
)  # fmt: skip
_define(
    flags.DEFINE_multi_string, MODES, "run_dir", None,
    "The run's folder, here or gs://; runs/<dataset> by default. To sample, evaluate, analyze, export or "
    "show, also several (the flag repeated, or commas between): the experts of one model; to evaluate, "
    "analyze or show, models to compare, too.",
)  # fmt: skip
_define(_enum, MODES, "split", None, ("low", "high"), "Which of imagenet256's two networks; low by default.")
_define(
    _string,
    (*TRAIN, *EVALUATE, *ANALYZE, *PAGE),
    "data_dir",
    "data",
    "Where named data sets lie; here or gs://.",
)
_define(_integer, (*TRAIN, *MEASURED), "seed", None, "Of everything random; 0 by default.", 0, 2**31 - 1)
_define(_enum, (*TRAIN, *SAMPLE, *EVALUATE), "strategy", "auto", STRATEGIES, "Where to compute.")
_define(
    _enum, TRAIN, "size", None, SIZES,
    "How large a network for tfds: and folder: data; by default base with an accelerator, else tiny.",
)  # fmt: skip
_define(
    _enum, TRAIN, "network", "unet", NETWORKS,
    "The data set's U-Net, a ViT of about its cost, or, for lsun_church, the one of the paper's Appendix D.",
)  # fmt: skip
_define(_integer, TRAIN, "patch_size", None, "P; picks the preset for lsun_church (2, 4 or 8).", 1)
_define(_string, TRAIN, "prediction", None, "What the network predicts: x, eps or v.")
_define(_integer, TRAIN, "train_steps", None, "Steps to train, in all.", 1)
_define(_integer, TRAIN, "batch_size", None, "Images a step, over all replicas.", 1)
_define(_integer, TRAIN, "grad_accum", None, "Parts that a replica's batch is worked off in.", 1)
_define(_string, TRAIN, "warm_start", None, "Run folder whose averaged weights a new run starts from.")
_define(flags.DEFINE_multi_string, TRAIN, "set", [], "Any field of the config, as key=value; repeatable.")
_define(
    _integer, MEASURED, "num_samples", None,
    "Images to draw; 16 by default, and 500 to evaluate a run (a few minutes on two cores for one of "
    f"{DEFAULT_DATASET}).", 1,
)  # fmt: skip
_define(
    _integer, MEASURED, "sample_batch_size", None,
    "Images to draw at a time; 16 by default, or all if they are fewer.", 1,
)  # fmt: skip
for _name, _leaf in {**leaves(SamplingConfig), **leaves(Edit)}.items():
    _define_sampling(_name, _leaf)
_define(
    flags.DEFINE_float, ("sample", "export"), "ema_length", None,
    "Average the weights over this part of the run, 0.01 to 0.25, from its snapshots (training.ema_lengths); "
    "by default training.ema_decay's average.", *EMA_LENGTHS,
)  # fmt: skip
_define(
    flags.DEFINE_multi_string, MEASURED, "labels", [],
    "Labels to draw in turn, numbers or names, with commas between; repeatable, for names with commas. By "
    "default all, and to evaluate as many of each class as its share of the reference says.",
)  # fmt: skip
_define(_string, SAMPLE, "init_image", None, "An image file to edit.")
_define(_string, SAMPLE, "mask", None, "A mask file: white where --init_image is to be painted anew.")
_define(_integer, SAMPLE, "trajectory", None, "Also draw x_theta at this many steps of the way.", 1)
_define(
    _string, DRAWN, "out", None,
    "Folder for what the mode makes; by default <run_dir>/samples, <run_dir>/evaluation (evaluations/<name> "
    "of --samples), <run_dir>/analysis, exports/<the run's name>, or "
    "exports/<the run's name>_weights.",
)  # fmt: skip
_define(
    _enum, ("export",), "format", FORMATS[0], FORMATS,
    "A model with its sampler for TensorFlow, or one network's weights alone for other frameworks.",
)  # fmt: skip
_define(
    flags.DEFINE_bool,
    SAMPLE,
    "save_pngs",
    False,
    "Write one PNG for each sample too, into the folder pngs of --out.",
)

_define(
    flags.DEFINE_multi_string, EVALUATE, "samples", [],
    "Images to evaluate: an .npz with arr_0, or a folder of images; repeatable. Beside a --run_dir's, or "
    "instead of drawing any.",
)  # fmt: skip
_define(
    flags.DEFINE_bool, EVALUATE, "equal_shares", False,
    "Draw as many images of each class, whatever the classes' shares of the reference.",
)  # fmt: skip
_define(
    _string, EVALUATE, "reference", "train",
    "What to compare with: a split of the data set, an .npz of images or of statistics (ADM's), or a folder.",
)  # fmt: skip
_define(
    flags.DEFINE_list, EVALUATE, "ema", [],
    "Evaluate averages of the weights over these parts of the run, such as 0.01,0.03,0.1: one row for each "
    "(see --ema_length).",
)  # fmt: skip
_define(
    _string, EVALUATE, "detector", "efficientnet_lite0",
    "The network whose features are compared: efficientnet_lite0, inception, or a Keras model's path.",
)  # fmt: skip
_define(
    _string, EVALUATE, "inception", None,
    "ADM's classify_image_graph_def.pb, if it is not in ~/.cache/pdm_tf.",
)  # fmt: skip
_define(
    flags.DEFINE_bool, EVALUATE, "likelihood", False,
    "Measure bits per dimension of the held-out split, the variational bound, instead of distances.",
)  # fmt: skip
_define(
    _integer, EVALUATE, "strata", None,
    "Estimate the bound from so many t for each image, without bias; by default all terms.", 1,
)  # fmt: skip
_define(
    _enum, ANALYZE, "what", ANALYSES[0], ANALYSES,
    "The table or figure of the paper to make of the runs.",
)  # fmt: skip
_define(
    flags.DEFINE_float, ANALYZE, "memory_gib", 2.0,
    "GiB that a process may have in which the largest batch is looked for (--what=memory).", 0.1,
)  # fmt: skip
_define(
    _string, PAGE, "host", "127.0.0.1",
    "The address to serve the page at; by default this machine alone can open it.",
)  # fmt: skip
_define(_integer, PAGE, "port", 7860, "The port to serve the page at.", 1, 2**16 - 1)

# A flag of some of the analyses -> these.
_ANALYSES_OF = {
    "memory_gib": ("memory",),
    "labels": ("fig1b", "fig4", "table1", "grids"),
    **dict.fromkeys(leaves(SamplingConfig), ("table1", "grids")),
}
# What somebody who gives a flag in a mode that does not have it may have wanted there.
_INSTEAD = {
    ("train", "steps"): "use --train_steps, or --set=sampling.steps=... for how its previews are drawn",
    ("train", "num_samples"): "use --set=training.sample_images=... for its previews",
    ("train", "sample_batch_size"): "use --batch_size",
    ("train", "out"): "use --run_dir",
    ("sample", "batch_size"): "use --sample_batch_size",
    ("sample", "train_steps"): "use --steps",
    ("export", "train_steps"): "use --steps",
    ("sample", "ema"): "use --ema_length",
    ("export", "ema"): "use --ema_length",
    ("evaluate", "ema_length"): "use --ema",
    ("evaluate", "train_steps"): "use --steps",
    ("evaluate", "batch_size"): "use --sample_batch_size",
    ("analyze", "batch_size"): "use --sample_batch_size",
}


class DataInfo(typing.Protocol):
    """What the config takes from a data set."""

    image_shape: tuple[int, int, int]
    num_classes: int
    label_names: tuple[str, ...]
    sha256: str


def check_mode() -> None:
    """Refuses flags that the mode does not have, so that nobody thinks they did something.

    Raises:
      UserError: says what to write instead.
    """
    for name, modes in _MODES_OF.items():
        if not FLAGS[name].using_default_value and FLAGS.mode not in modes:
            advice = _advice(FLAGS.mode, name)
            raise UserError(f"--{name} is for --mode={' and '.join(modes)}; in --mode={FLAGS.mode} {advice}")


def check_likelihood() -> None:
    """Refuses --likelihood beside flags of how to draw or compare, and --strata without it.

    Raises:
      UserError: says which to leave out.
    """
    if FLAGS.strata and not FLAGS.likelihood:
        raise UserError("--strata needs --likelihood: give it, or leave --strata out")
    drawn = {"samples", "reference", "detector", "inception", "ema", "labels", "equal_shares"}
    drawn |= set(leaves(SamplingConfig)) - {"sampler", "variance"}  # whose flag needs the other
    for name in sorted(drawn if FLAGS.likelihood else ()):
        if not FLAGS[name].using_default_value:
            raise UserError(f"--{name} is not for --likelihood, which draws nothing: leave one of them out")


def check_analysis() -> None:
    """Refuses flags that the analysis asked for does not use.

    Raises:
      UserError: says which to leave out.
    """
    for name, analyses in _ANALYSES_OF.items():
        if not FLAGS[name].using_default_value and FLAGS.what not in analyses:
            raise UserError(
                f"--{name} is for --what={' and '.join(analyses)}, and does nothing for {FLAGS.what}: leave "
                "it out"
            )


def _advice(mode: str, name: str) -> str:
    """What to do about a flag that `mode` does not have."""
    known = _INSTEAD.get(("train" if mode in TRAIN else mode, name))
    if known:
        return known
    if mode in TRAIN and name in leaves(SamplingConfig):
        return f"use --set=sampling.{name}=... for how its previews and samples are drawn"
    if mode == "export" and SAMPLE[0] in _MODES_OF[name]:
        return "leave it out: each call gives it seed, labels and guidance, and edits are not exported"
    if mode not in TRAIN and set(TRAIN) <= set(_MODES_OF[name]):
        return "leave it out: the run's config.json has it"
    return "leave it out"


def flags_of(mode: str) -> list[str]:
    """The names of the flags that a mode has."""
    return [name for name, modes in _MODES_OF.items() if mode in modes]


def dataset_name() -> str:
    """The data set that was asked for, or the default."""
    return FLAGS.dataset or DEFAULT_DATASET


def is_named(dataset: str) -> bool:
    """Whether the data set has a preset of its own; others tell their shape themselves."""
    return not dataset.startswith(("tfds:", "folder:"))


def run_dir() -> str:
    """The folder of a run to train or describe.

    Raises:
      UserError: --run_dir names none, or several.
    """
    folders = FLAGS.run_dir or [_default_run_dir()]
    if len(folders) > 1:
        raise UserError(
            f"--run_dir is given {len(folders)} times: a run is trained in one folder, so give one"
        )
    if not folders[0]:
        raise UserError("--run_dir= names no folder: give a run's")
    return folders[0]


def run_dirs(is_run: typing.Callable[[str], bool]) -> list[str]:
    """The folders of the run, or of the experts, to sample from.

    Any text may be a folder's name: one with commas is several only if it is not itself a run.

    Args:
      is_run: whether there is a run in a folder.
    Raises:
      UserError: --run_dir names none.
    """
    folders = []
    for text in FLAGS.run_dir or ():
        folders += [text] if "," not in text or is_run(text) else text.split(",")
    folders = [folder for folder in folders if folder]
    if FLAGS.run_dir and not folders:
        raise UserError(
            f"--run_dir={','.join(FLAGS.run_dir)} names no folder: give a run's, or experts' with a comma "
            "between"
        )
    return folders or [_default_run_dir()]


def _default_run_dir() -> str:
    name = dataset_name()
    if name.startswith("tfds:"):
        name = name.split(":")[1].replace("/", "-")  # tfds:NAME/CONFIG:VERSION
    elif name.startswith("folder:"):
        name = _last_part(name.partition(":")[2])
    others = [FLAGS.network] if FLAGS.network != "unet" else []
    return "_".join([f"runs/{name}", *others, *([FLAGS.split] if FLAGS.split else [])])


def _last_part(path: str) -> str:
    """A folder's own name, also of `.`."""
    return os.path.basename(os.path.abspath(os.path.expanduser(path)))


def default_out(run_dirs: typing.Sequence[str]) -> str:
    """The folder for what the mode makes, without --out, of these runs."""
    if FLAGS.mode == "export":
        name = "_".join(map(_last_part, run_dirs)) + ("_weights" if FLAGS.format == "safetensors" else "")
        return "exports/" + re.sub(r"[][*?\\]", "_", name)  # TensorFlow loads from no folder with these
    if FLAGS.mode == "evaluate" and FLAGS.samples and not FLAGS.run_dir:
        return os.path.join("evaluations", _last_part(FLAGS.samples[0]))
    own = {"evaluate": "evaluation", "analyze": "analysis"}
    return os.path.join(run_dirs[0], own.get(FLAGS.mode, "samples"))


def num_samples() -> int:
    """How many images to draw."""
    return FLAGS.num_samples or (500 if FLAGS.mode == "evaluate" else 16)


def sample_batch_size(count: int, replicas: int = 1) -> int:
    """How many of `count` images to draw at a time; by default no more than are shared by the replicas."""
    return FLAGS.sample_batch_size or min(TOGETHER, -(-count // replicas) * replicas)


def network_size(accelerator: bool) -> str:
    """--size, or the default, which is for two cores what trains tens of images a second (docs/sizes.md)."""
    return FLAGS.size or ("base" if accelerator else "tiny")


def size_chosen(accelerator: bool, earlier: Config | None, parent: Config | None) -> str:
    """A line on how large a network other data get, and why; "" for a data set with one of its own."""
    if is_named(dataset_name()):
        return ""
    why = f"there is {'an' if accelerator else 'no'} accelerator; --size={'|'.join(SIZES)} chooses"
    if not FLAGS.size and (earlier or parent):
        return f"size: as {'the run' if earlier else 'the one that it starts from'} has it\n"
    return f"size: {network_size(accelerator)} ({'as asked for' if FLAGS.size else why})\n"


def training_config(
    info: DataInfo | None,
    accelerator: bool = False,
    earlier: Config | None = None,
    parent: Config | None = None,
) -> Config:
    """The validated config of the command line: settings first, then what follows from them.

    Args:
      info: describes the data set; None for a named one that is not at hand: no class names then.
      accelerator: whether there is one to train on.
      earlier: the config of the run's earlier part, if there is one: what a new run would derive from the
        machine, or from its length, is as it was then.
      parent: the config of the run whose weights a new run starts from: other data get its network.
    Raises:
      UserError: something cannot work.
    """
    dataset, given = dataset_name(), given_settings()
    before, kind = earlier or parent, "unet" if FLAGS.network == "unet" else "vit"
    own_size = not is_named(dataset) and not FLAGS.size and before and before.network.kind == kind
    if earlier is not None and dataset not in PAPERS:
        kept = (*DERIVED_FROM_LENGTH, *(DERIVED_FROM_SIZE if own_size else ()))
        given = {**{key: get(earlier, key) for key in kept}, **given}
    elif parent is not None and own_size:
        given = {**{key: get(parent, key) for key in NETWORK}, **given}
    if not is_named(dataset):
        refuse_split(dataset, FLAGS.split)
        data = DataConfig(dataset, info.image_shape, info.num_classes, info.label_names, sha256=info.sha256)
        config = sized_preset(network_size(accelerator), data, given)
    elif FLAGS.size:
        raise UserError(
            f"--size={FLAGS.size} is for tfds: and folder: data, and {dataset} has a network of its own: "
            "leave it out"
        )
    else:
        known = {"data.label_names": info.label_names, "data.sha256": info.sha256} if info else {}
        config = preset(dataset, FLAGS.patch_size, FLAGS.split, {**known, **given})
    config = config.replace({**network_settings(FLAGS.network, config), **given})
    return validate(config if dataset in PAPERS else fitted_to_length(config, given))


def parent_dir() -> str:
    """The run folder whose network other data get, because a new run starts from its weights; or ""."""
    return "" if is_named(dataset_name()) else given_settings().get("training.warm_start", "")


def given_settings() -> dict[str, typing.Any]:
    """What the flags set of the config, by dotted key.

    Raises:
      UserError: an unknown key, or a value that is not allowed.
    """
    shortcuts = {
        "seed": FLAGS.seed,
        "network.patch_size": FLAGS.patch_size,
        "diffusion.prediction": FLAGS.prediction,
        "training.steps": FLAGS.train_steps,
        "training.batch_size": FLAGS.batch_size,
        "training.grad_accum": FLAGS.grad_accum,
        "training.warm_start": FLAGS.warm_start,
    }
    given = {key: value for key, value in shortcuts.items() if value is not None}
    given.update(parse_settings(FLAGS.set))
    check_values(Config, given)  # before anything is derived from them
    return given


def with_sampling_flags(config: Config) -> Config:
    """A run's config, sampled as the flags say and, where they say nothing, as the run has it.

    Raises:
      UserError: a flag without the one that it belongs to, or steps or a weight that cannot work.
    """
    given = {}
    for name, leaf in leaves(SamplingConfig).items():
        value = FLAGS[name].value
        if value is not None:
            given[name] = parse(value, leaf.kind, f"--{name}") if isinstance(value, str) else value
    if FLAGS.mask:
        given.setdefault("sampler", "ancestral")  # whose steps inpainting goes over again
    sampling = replace(config.sampling, given)
    _refuse_lonely_flags(sampling.sampler)
    config = config.replace({"sampling": sampling})
    try:
        check_sampling(config)
    except UserError as error:  # it names settings, and the user wrote flags
        raise UserError(str(error).replace("sampling.", "--")) from error
    return config


def edit_options() -> dict[str, float]:
    """Fields of `Edit` that flags set; what is inpainted begins from pure noise, if nothing else is said."""
    given = {"strength": 1.0} if FLAGS.mask else {}
    given.update({name: FLAGS[name].value for name in leaves(Edit) if FLAGS[name].value is not None})
    return given


def _refuse_lonely_flags(sampler: str) -> None:
    """Refuses flags that would do nothing, so that nobody thinks they did something."""
    there = {sampler, *(name for name in ("init_image", "mask") if FLAGS[name].value)}
    if FLAGS.mask and not ({"ancestral", "init_image"} <= there):
        raise UserError("--mask needs an --init_image and --sampler=ancestral: give them, or leave it out")
    for name, leaf in {**leaves(SamplingConfig), **leaves(Edit)}.items():
        of = leaf.rule.of
        if FLAGS[name].value is not None and of and not there & set(of):
            needed = {"init_image": "an --init_image", "mask": "a --mask"}
            wanted = " or ".join(needed.get(owner, f"--sampler={owner}") for owner in of)
            raise UserError(f"--{name} needs {wanted}: give it, or leave --{name} out")


def ema_lengths() -> list[float]:
    """The lengths of `--ema`, each once.

    Raises:
      UserError: not numbers, or nothing to average because images are given.
    """
    if FLAGS.ema and FLAGS.samples and not FLAGS.run_dir:
        raise UserError("--ema is for a run's weights, and --samples gives images: leave one of them out")
    return list(dict.fromkeys(parse(text, float, "--ema") for text in FLAGS.ema))


def sampling_labels(config: Config) -> list[int] | None:
    """`--labels` as class numbers, or None for all classes in turn.

    Raises:
      UserError: an unknown name, a number out of range, or a model without classes.
    """
    if not FLAGS.labels:
        return None
    if not config.conditional:
        raise UserError("--labels: this model has no classes; leave the flag out")
    names = {_composed(name): number for number, name in enumerate(config.data.label_names)}
    # Each flag's whole text first: a name may have commas.
    texts = [
        part for text in FLAGS.labels for part in ([text] if _composed(text) in names else text.split(","))
    ]
    return [_class_number(text.strip(), names, config.data.num_classes) for text in texts]


def _composed(name: str) -> str:
    """A name with each accented letter as one character: some systems' files have it as two."""
    return unicodedata.normalize("NFC", name)


def _class_number(text: str, names: dict[str, int], classes: int) -> int:
    """The class that a name, a number, or "#" and a number stand for; one text never means two of them."""
    named, digits = names.get(_composed(text)), text.removeprefix("#")
    number = int(digits) if digits.isdecimal() and len(digits) < 10 and int(digits) < classes else None
    if named is not None and number not in (None, named):
        raise UserError(
            f"--labels={text} is number {number} and the name of number {named}: write #{number} or #{named}"
        )
    if named is None and number is None:
        close = difflib.get_close_matches(text, names, n=5, cutoff=0.4)
        close += [name for name in names if name.lower() == text.lower() and name not in close]
        also = f", or a name such as {', '.join(close or list(names)[:20])}" if names else ""
        raise UserError(f"--labels: there is no class {text!r}; use 0 to {classes - 1}{also}")
    return named if number is None else number
