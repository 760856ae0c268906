"""The config that a run trains with: what was given, over all that follows from it, in one function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pdm_tf.config import presets
from pdm_tf.config.fields import OF_DATA, Config, DataConfig, changes, validate
from pdm_tf.config.presets import PAPERS, is_named
from pdm_tf.config.words import check_values, get, leaves
from pdm_tf.errors import UserError

SHOWN = 4  # settings that a run in the folder has otherwise


class Given(NamedTuple):
    """What a command says of a run; saved as given.json beside config.json, what it was resolved to."""

    dataset: str  # a named one, tfds:NAME or folder:PATH
    network: str | None = None  # one of `presets.NETWORKS`; None: U-Net, or as an earlier part of the run
    size: str | None = (
        None  # one of `presets.SIZES`, without a preset; None: as fits the machine, or as above
    )
    split: str | None = None  # "low" or "high" of imagenet256; None: low
    settings: Mapping[str, Any] = {}  # values by dotted key of the config

    def to_json(self) -> str:
        return json.dumps(self._asdict(), indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> Given:
        return Given(**json.loads(text))

    def derives_as(self, other: Given) -> bool:
        """Whether what is chosen here is chosen there too."""
        pairs = ((self.network, other.network), (self.size, other.size), (self.split, other.split))
        return all(here in (None, there) for here, there in pairs)


def resolve(
    given: Given,
    info: Any = None,
    default_size: str = "tiny",
    precision: str = "float32",
    *,
    earlier: Config | None = None,
    begun_with: Given | None = None,
    parent: Config | None = None,
) -> Config:
    """The validated config that training uses. Each layer goes over those before it:

    1. the fields' defaults;
    2. the data set's experiment, or for other data a network of a size that fits the images; of a student
       its teacher's config (`presets.student`);
    3. the data's own classes and digest, or, of data not at hand, the earlier part's;
    4. another network than its U-Net, with the process and rate that it is trained with;
    5. of a new run that starts from another's weights: that run's network, for data without a preset;
       of a run that goes on: what it derived when it began, on whatever machine and for whatever length;
    6. what was given; of a new run without a preset, weights that ship, where its network is theirs;
    7. periods and warm-up that fit the length, where they are not given, but for the paper's experiments;
    8. the machine's precision, in place of "auto".

    Args:
      info: the data set's `DatasetInfo`; None for a named one that is not at hand.
      default_size: the size for data without a preset.
      precision: what "auto" is on this machine.
      earlier: the config of the run's earlier part, if there is one (see `refuse_other_settings`).
      begun_with: what was given for that; None: its folder has no given.json.
      parent: the config of the run whose weights a new run starts from, or its teacher's.
    """
    if given.split and given.dataset != "imagenet256":
        raise UserError(
            f"--split={given.split} is for imagenet256; for {given.dataset} choose an expert's noise levels "
            "with --set=diffusion.t_start=... and --set=diffusion.t_stop=..."
        )
    settings = {**given.settings}
    check_values(Config, settings)
    if settings.get("training.precision") == "auto":
        del settings["training.precision"]
    network = given.network
    size = None
    if earlier is not None:
        settings = {**_derived(earlier, given, begun_with), **settings}
    elif parent is not None and _inherits_network(given, parent):
        settings = {**_network_of(parent, info), **settings}
        network = network or parent.network.kind

    if settings.get("distillation.teacher"):
        if given.network or given.size:
            raise UserError("a student has its teacher's network: leave --network and --size out")
        network = None
        config = (earlier or presets.student(parent, settings)).replace({"data.dataset": given.dataset})
    elif is_named(given.dataset):
        if given.size:
            raise UserError(f"--size={given.size} is for tfds: and folder: data, and not for {given.dataset}")
        config = presets.preset(given.dataset, settings.get("network.patch_size"), given.split)
    else:
        size = given.size or (begun_with and begun_with.size) or default_size
        network = network or presets.SIZES[size].network
        data = DataConfig(given.dataset, info.image_shape, info.num_classes)
        config = presets.sized_preset(size, data, settings)
        if info.num_examples["train"] > presets.MOST_SCORED:
            config = config.replace({"training.score_every": 0})
    described = info or (earlier and earlier.data)
    if described:
        config = config.replace({"data.label_names": described.label_names, "data.sha256": described.sha256})
        if config.data.num_classes and described.num_classes and not config.is_student:
            found = earlier.data if earlier else described  # a part of ImageNet's classes, for one
            config = config.replace({"data.num_classes": found.num_classes})
    if "diffusion.num_timesteps" in settings and config.diffusion.t_stop == config.diffusion.num_timesteps:
        settings = {"diffusion.t_stop": settings["diffusion.num_timesteps"], **settings}
    config = config.replace(settings)
    config = config.replace(presets.network_settings(network or "unet", config, size)).replace(settings)
    if size and not (earlier or parent):
        config = config.replace({"training.warm_start": presets.shipped_weights(config)}).replace(settings)
    if given.dataset not in PAPERS or config.is_student:
        config = presets.fitted_to_length(config, settings)
    if config.training.precision == "auto":
        config = config.replace({"training.precision": precision})
    return validate(config)


def _derived(earlier: Config, given: Given, begun_with: Given | None) -> dict[str, Any]:
    """What the earlier part derived and may not change; its data are looked at, and not taken from it."""
    kept = {"training.warm_start": earlier.training.warm_start}  # the record of how it began
    begun_with = begun_with or Given(given.dataset)
    if given.derives_as(begun_with):
        fixed = [key for key, leaf in leaves(Config).items() if not leaf.rule.may_change]
        chosen = [key for key, value in begun_with.settings.items() if value != "auto"]
        derived = [key for key in fixed if key not in OF_DATA and key not in chosen]
        kept.update({key: get(earlier, key) for key in derived})
    return kept


def _inherits_network(given: Given, parent: Config) -> bool:
    kinds = {None: parent.network.kind, "unet": "unet", "local": "unet"}
    same_kind = kinds.get(given.network, "vit") == parent.network.kind
    return same_kind and not is_named(given.dataset) and not given.size


def _network_of(parent: Config, info: Any) -> dict[str, Any]:
    """The parent's network and its prediction, by dotted key, without what follows from the data: labels, and
    patches if theirs are other images."""
    own = {"network.class_conditioning"}
    if info.image_shape[:2] != parent.data.image_shape[:2]:
        own.add("network.patch_size")
    network = [key for key in leaves(Config) if key.startswith("network.") and key not in own]
    return {key: get(parent, key) for key in (*network, "diffusion.prediction")}


def refuse_other_settings(earlier: Config, config: Config, folder: object) -> None:
    """Raises UserError if the run in a folder cannot go on with `config`: what may not change has changed."""
    known = leaves(Config)
    changed = changes(earlier, config).items()
    fixed = []
    for key, values in changed:
        if not known[key].rule.may_change:
            there, now = ("nothing" if value in ("", ()) else value for value in values)
            fixed.append(f"{key} ({there} there, {now} now)")
    if fixed:
        more = f"; and {len(fixed) - SHOWN} more" if len(fixed) > SHOWN else ""
        raise UserError(
            f"{folder} holds a run with other settings: {'; '.join(fixed[:SHOWN])}{more}: give the same ones "
            "to resume it, or another folder"
        )
