"""--mode=train: train in the run folder, or go on from its newest checkpoint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from pdm_tf import devices, plots
from pdm_tf.commands.options import DataOptions, DeviceOptions, default_run_dir
from pdm_tf.config.fields import Config, parse_settings
from pdm_tf.config.presets import NETWORKS, SIZES, is_named
from pdm_tf.config.resolve import Given, refuse_other_settings, resolve
from pdm_tf.config.words import leaves, setting
from pdm_tf.data import DatasetInfo, find_dataset
from pdm_tf.errors import UserError
from pdm_tf.progress import peak_resident
from pdm_tf.run import RunFolder, run_or_shipped
from pdm_tf.training import loop

# Fields that --set does not take, and why.
NOT_SET = {
    "data.dataset": "use --dataset",
    "data.sha256": "it follows from the data",
    "distillation.teacher": "use --teacher",
}


def of_config(key: str, help: str = "") -> Any:
    """An option that is a setting of the config, None where it is not given."""
    rule = leaves(Config)[key].rule
    rule = dataclasses.replace(rule, help=help or rule.help)
    return dataclasses.field(default=None, metadata={"rule": rule, "key": key})


@dataclass(frozen=True)
class Options(DeviceOptions, DataOptions):
    """Train in the run folder, or go on from its newest checkpoint."""

    seed: Optional[int] = of_config("seed", "Seed of all random numbers; 0 by default.")
    size: Optional[str] = setting(
        None,
        "How large a network for tfds: and folder: data; by default base with an accelerator, else tiny.",
        choices=tuple(SIZES),
    )
    network: Optional[str] = setting(
        None,
        "The data set's U-Net, a ViT of about its cost, an expert for little noise that learns from crops "
        "(local) or, for lsun_church, the ViT of the paper's Appendix D; by default vit for tfds: and "
        "folder: data of size tiny, else unet.",
        choices=NETWORKS,
    )
    patch_size: Optional[int] = of_config(
        "network.patch_size", "P; picks the preset for lsun_church (2, 4 or 8)."
    )
    prediction: Optional[str] = of_config("diffusion.prediction")
    train_steps: Optional[int] = of_config("training.steps")
    batch_size: Optional[int] = of_config("training.batch_size")
    grad_accum: Optional[int] = of_config("training.grad_accum")
    warm_start: Optional[str] = of_config(
        "training.warm_start",
        "Run folder, or name of weights that ship, whose averages a new run begins with; empty: none. By "
        "default avatars64, or avatars256 if P is more than 8, for tfds: and folder: data with that network.",
    )
    teacher: Optional[tuple[str, ...]] = of_config(
        "distillation.teacher",
        "Run folder, or name of weights that ship, of a student's teacher; several: the teacher's experts.",
    )
    set: tuple[str, ...] = setting((), "Any field of the config, as key=value.")

    @property
    def dataset_name(self) -> str:
        """The data set that is asked for, or a teacher's, or the default."""
        if self.dataset or not self.teacher:
            return super().dataset_name
        return run_or_shipped(self.teacher[0]).config().data.dataset

    @property
    def given(self) -> Given:
        fields = [field for field in dataclasses.fields(self) if "key" in field.metadata]
        settings = {field.metadata["key"]: getattr(self, field.name) for field in fields}
        settings = {key: value for key, value in settings.items() if value is not None}
        parsed = parse_settings(self.set)
        for key, advice in NOT_SET.items():
            if key in parsed:
                raise UserError(f"--set={key}: {advice}")
        settings.update(parsed)
        return Given(self.dataset_name, self.network, self.size, self.split, settings)

    @property
    def folder(self) -> RunFolder:
        """The run's folder; UserError if --run_dir names none, or several."""
        network = self.network if self.network != "unet" else None
        student = "student" if self.teacher else None
        folders = self.run_dir or (default_run_dir(self.dataset_name, network, self.split, student),)
        if len(folders) > 1:
            raise UserError(f"--run_dir is given {len(folders)} times: a run is trained in one folder")
        if not folders[0]:
            raise UserError("--run_dir= names no folder: give a run's")
        return RunFolder(folders[0])


class Plan(NamedTuple):
    """What to train, where, and lines on what was chosen for data without a preset."""

    config: Config
    run: RunFolder
    choices: str
    given: Given  # with the size that this machine chose: a run keeps it on another


def plan(options: Options, info: Optional[DatasetInfo]) -> Plan:
    """The config that a run trains with on this machine; UserError if its folder holds another run."""
    given, run = options.given, options.folder
    if info and not info.num_examples.get("train"):
        raise UserError(f"{info.name} has no split train, but {', '.join(info.num_examples)}")
    strategy = devices.choose(options.strategy)[0]
    earlier = run.config() if run.has_begun() else None
    if earlier and info:  # other data are refused as such, and not for what does not fit them
        data = {"data.dataset": given.dataset, "data.sha256": info.sha256}
        refuse_other_settings(earlier, earlier.replace(data), run)
    teacher = given.settings.get("distillation.teacher")
    source = teacher[0] if teacher else given.settings.get("training.warm_start")
    parent = run_or_shipped(source).config() if source and not earlier else None
    if teacher and parent:
        sizes = {run_or_shipped(name).config().data.image_shape[:2] for name in teacher}
        if len(sizes) > 1:
            raise UserError("--teacher: experts of images of several sizes have no student; name others")
    default_size = "base" if devices.has_accelerator(strategy) else "tiny"
    config = resolve(
        given,
        info,
        default_size,
        devices.fitting_precision(strategy),
        earlier=earlier,
        begun_with=run.given() if earlier else None,
        parent=parent,
    )
    if earlier:
        refuse_other_settings(earlier, config, run)
    for key in sorted(given.settings.keys() - config.used_keys):
        print(f"note: {key} does nothing here: it is for {' and '.join(leaves(Config)[key].rule.of)}")
    sized = given
    if not (is_named(given.dataset) or teacher):
        sized = given._replace(size=given.size or default_size)
    if is_named(given.dataset) or earlier or parent:
        return Plan(config, run, "", sized)
    choices = ""
    if not given.size:
        accelerator = "an" if default_size == "base" else "no"
        choices = (
            f"size: {default_size} (there is {accelerator} accelerator; --size={'|'.join(SIZES)} chooses)\n"
        )
    if config.training.warm_start:
        choices += (
            f"begins with the weights {config.training.warm_start} that ship (--warm_start= for none)\n"
        )
    return Plan(config, run, choices, sized)


def run(options: Options) -> None:
    info = find_dataset(options.dataset_name, options.data_dir)
    config, folder, choices, given = plan(options, info)
    strategy = devices.make_strategy(options.chosen_strategy())
    print(choices, end="", flush=True)
    step = loop.train(config, folder, info, strategy, given)
    if not devices.is_chief(strategy):
        return
    plots.loss_curve(folder)
    print(f"peak memory: {peak_resident() / 2**10:.2f} GiB")
    print(f"run folder: {folder}")
    print(f"loss curve: {folder.loss_curve}")
    print(f"samples: {folder.preview(step)}")
    if step < config.training.steps:
        print(f"step {step:,} of {config.training.steps:,}, all saved: run the same command to go on")
