"""Options that several modes have, and what they stand for."""

from __future__ import annotations

import dataclasses
import difflib
import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from pdm_tf import devices
from pdm_tf.config.fields import (
    EMA_LENGTHS,
    OF_DATA,
    TOGETHER,
    Config,
    DataConfig,
    SamplingConfig,
    changes,
    check_sampling,
)
from pdm_tf.config.presets import DEFAULT_DATASET, is_named
from pdm_tf.config.words import choice, leaves, replace, setting
from pdm_tf.data import DatasetInfo, find_dataset
from pdm_tf.errors import UserError
from pdm_tf.ledger import Share
from pdm_tf.models import Model, models_from_folders, origin_text
from pdm_tf.paths import Path, as_path
from pdm_tf.run import RunFolder, shipped_folders
from pdm_tf.sampling.batches import default_batch


@dataclass(frozen=True)
class RunOptions:
    dataset: Optional[str] = setting(
        None,
        f"The data set, which also picks the preset: {DEFAULT_DATASET} (the default), avatars32, avatars256, "
        "avatars1024, emoji64, lsun_church, imagenet256, ffhq1024, tfds:NAME, or folder:PATH for a data set "
        "made by data_tools.",
    )
    run_dir: tuple[str, ...] = setting(
        (),
        "The run's folder, local or gs://; runs/<dataset> by default. Several (repeat the flag, or commas "
        "between) are the experts of one model, or models to compare. Training takes one.",
    )
    split: Optional[str] = setting(
        None, "Which of imagenet256's two networks; low by default.", choices=("low", "high")
    )

    @property
    def dataset_name(self) -> str:
        return self.dataset or DEFAULT_DATASET

    def run_dirs(self) -> list[str]:
        """The folders of --run_dir, or the default one; text with commas that is itself no run is several."""
        folders = []
        for text in self.run_dir:
            folders += [text] if "," not in text or RunFolder(text).has_config() else text.split(",")
        folders = [folder for folder in folders if folder]
        if self.run_dir and not folders:
            raise UserError(f"--run_dir={','.join(self.run_dir)} names no folder: give a run's")
        return folders or [default_run_dir(self.dataset_name, self.split)]

    def trained_dirs(self) -> list[str]:
        """`run_dirs`; before there is a default one, the weights that ship for its data, which is printed."""
        folders = self.run_dirs()
        is_other = self.run_dir or not is_named(self.dataset_name) or RunFolder(folders[0]).has_config()
        shipped = [] if is_other else [str(folder) for folder in shipped_folders(self.dataset_name)]
        if shipped:
            print(f"using the weights that ship with the project: {','.join(shipped)}", flush=True)
        return shipped or folders

    def model(self, **defaults: Any) -> Model:
        """The model of the run, or experts, to draw from, sampled as asked (`sampled_as_asked`)."""
        model = Model.from_folders(*self.trained_dirs())
        self._ask(model, **defaults)
        return model

    def models(self) -> list[Model]:
        """The models to compare, of the same data, sampled as asked."""
        folders = self.trained_dirs()
        # What ships for one data set is one model.
        models = models_from_folders(*folders) if self.run_dir else [Model.from_folders(*folders)]
        for model in models:
            if changes(model.config, models[0].config).keys() & set(OF_DATA):
                raise UserError(f"{model} and {models[0]} are of different data: evaluate one at a time")
            self._ask(model)
        return models

    def _ask(self, model: Model, **defaults: Any) -> None:
        model.config = sampled_as_asked(model.config, self, **defaults)
        unguided = model.config.sampling.guidance == 1.0 and hasattr(self, "guidance")
        for name in ("guide", "guidance_interval"):
            if unguided and getattr(self, name, None):
                raise UserError(f"--{name} does nothing at --guidance=1: give a weight, as in --guidance=1.5")
        if getattr(self, "guide", ()):
            model.be_guided_by(*self.guide)


@dataclass(frozen=True)
class DataOptions(RunOptions):
    data_dir: str = setting("data", "Where named data sets lie; here or gs://.")

    def trained_data(self, data: Optional[DataConfig]) -> DatasetInfo:
        """The data that a model learnt from, wherever --dataset says they lie; of None --dataset itself."""
        name = self.dataset_name if self.dataset or not data else data.dataset
        info = find_dataset(name, self.data_dir)
        if data and data.sha256 and data.sha256 != info.sha256:
            raise UserError(
                f"{info.directory} holds other data than {data.dataset}, which the model has learnt from: "
                "name the place where that lies now with --dataset"
            )
        return info


class Place(NamedTuple):
    """Where to draw: a strategy's name, and the share of the batches that this process draws."""

    strategy: str
    share: Share = Share()

    def is_helper(self, out: object) -> bool:
        """Whether worker 0 writes the results and this process has only drawn its share, and prints so."""
        if self.share.number:
            name = f"worker {self.share.number} of {self.share.workers}"
            print(f"{name}: its share is drawn; worker 0 writes {out}")
        return self.share.number > 0


@dataclass(frozen=True)
class DeviceOptions:
    strategy: str = choice(("auto", "cpu", "mirrored", "multi_worker", "tpu"), "Where to compute.")

    def chosen_strategy(self) -> str:
        """The strategy; what "auto" is here is printed."""
        chosen, place = devices.choose(self.strategy)
        if chosen != self.strategy:
            print(f"running on {place}", flush=True)
        return chosen

    def place_to_draw(self) -> Place:
        """The place to draw at; of a cluster's workers each draws its share, alone."""
        chosen = self.chosen_strategy()
        if chosen != "multi_worker":
            return Place(chosen)
        number, workers = devices.place_in_cluster()
        chosen = devices.of_this_machine()
        print(f"worker {number} of {workers} draws one of every {workers} batches", flush=True)
        return Place(chosen, Share(number, workers, devices.connect_seconds()))


@dataclass(frozen=True)
class OutputOptions:
    out: Optional[str] = setting(
        None,
        "Folder for what the mode makes; by default <run_dir>/samples, <run_dir>/evaluation "
        "(evaluations/<name> of --samples), <run_dir>/analysis, exports/<the run's name>, or "
        "exports/<the run's name>_weights.",
    )

    def out_folder(self, default: str) -> Path:
        return as_path(default if self.out is None else self.out)


@dataclass(frozen=True)
class AverageOptions:
    ema_length: Optional[float] = setting(
        None,
        "Average the weights over this part of the run, from its snapshots (training.ema_lengths); by "
        "default training.ema_decay's average.",
        least=EMA_LENGTHS[0],
        most=EMA_LENGTHS[1],
    )

    def use_average(self, model: Model) -> None:
        """Has the model use the average that is asked for; one of --ema_length is described."""
        model.use_ema_length(self.ema_length)
        for origin in model.origin if self.ema_length else ():
            print(origin_text(origin), flush=True)


def overrides(section: type, default: str = "as the run has it", without: Collection[str] = ()) -> type:
    """A dataclass of a section's fields, each None where it is not given; `default` is what that means."""
    fields = []
    for name, leaf in leaves(section).items():
        note = f"By default {default or leaf.default}."
        rule = dataclasses.replace(leaf.rule, help=f"{leaf.rule.help} {note}")
        if name not in without:
            field = dataclasses.field(default=None, metadata={"rule": rule})
            fields.append((name, Optional[leaf.kind], field))
    return dataclasses.make_dataclass(f"{section.__name__}Overrides", fields, frozen=True)


@dataclass(frozen=True)
class DrawingOptions(overrides(SamplingConfig)):
    guide: tuple[str, ...] = setting(
        (),
        "Run folder of a weaker model of the same images, which --guidance leads away from (several: its "
        "experts); by default the model itself without a class.",
    )
    seed: int = setting(0, "Seed of all random numbers.", least=0, below=2**31)
    num_samples: Optional[int] = setting(16, "Images to draw.", above=0)
    sample_batch_size: Optional[int] = setting(
        None, f"Images to draw at a time; {TOGETHER} by default, or all if they are fewer.", above=0
    )
    labels: tuple[str, ...] = setting(
        (),
        "Classes to draw in turn, numbers or names, with commas between; repeat the flag for a name with "
        "commas. By default all; --mode=evaluate draws them in the proportions of the reference.",
    )

    def batch_size(self, count: int, replicas: int = 1) -> int:
        """How many of `count` images to draw at a time, as asked or `default_batch`."""
        return self.sample_batch_size or default_batch(count, replicas)


def given_fields(section: type, options: Any) -> dict[str, Any]:
    values = {name: getattr(options, name, None) for name in leaves(section)}
    return {name: value for name, value in values.items() if value is not None}


def sampled_as_asked(config: Config, options: Any, **defaults: Any) -> Config:
    """A run's config with the sampling options that are given; `defaults` go before the run's own values."""
    given = given_fields(SamplingConfig, options)
    config = config.replace({"sampling": replace(config.sampling, {**defaults, **given})})
    sampler = config.sampling.sampler
    for name in given:
        owners = leaves(SamplingConfig)[name].rule.of
        if owners and sampler not in owners:
            raise UserError(f"--{name} does nothing for --sampler={sampler}: it is for {' or '.join(owners)}")
    try:
        check_sampling(config, has_guide=bool(getattr(options, "guide", ())))
    except UserError as error:  # it names settings, and the user wrote flags
        raise UserError(str(error).replace("sampling.", "--")) from error
    return config


def default_run_dir(dataset: str, *kinds: Optional[str]) -> str:
    """runs/<dataset>, and the network and split that were asked for."""
    name = dataset
    if dataset.startswith("tfds:"):
        name = dataset.split(":")[1].replace("/", "-")  # tfds:NAME/CONFIG:VERSION
    elif dataset.startswith("folder:"):
        name = last_part(dataset.partition(":")[2])
    return "_".join([f"runs/{name}", *filter(None, kinds)])


def last_part(path: str) -> str:
    """A folder's own name, also of `.`."""
    return os.path.basename(os.path.abspath(os.path.expanduser(path)))


# --- classes -------------------------------------------------------------------------------------


def class_numbers(texts: Sequence[str], config: Config) -> Optional[list[int]]:
    """The class numbers of texts of names, numbers, or "#" and a number, commas between; None without any."""
    if not texts:
        return None
    if not config.conditional:
        raise UserError("--labels: this model has no classes; leave the flag out")
    numbers = {_composed(name): number for number, name in enumerate(config.data.label_names)}
    words = []
    for text in texts:  # the whole text first: a name may have commas
        words += [text] if _composed(text) in numbers else text.split(",")
    return [_class_number(word.strip(), numbers, config.data.num_classes) for word in words]


def _composed(name: str) -> str:
    """A name with each accented letter as one character: some systems' files have it as two."""
    return unicodedata.normalize("NFC", name)


def _class_number(text: str, names: dict[str, int], classes: int) -> int:
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
