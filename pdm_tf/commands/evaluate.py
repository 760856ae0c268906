"""--mode=evaluate: distances of runs' or files' images to a reference, or bits per dimension."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Optional

from pdm_tf import devices
from pdm_tf.commands.options import (
    DataOptions,
    DeviceOptions,
    DrawingOptions,
    OutputOptions,
    Place,
    class_numbers,
    given_fields,
)
from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import require, setting
from pdm_tf.data import DatasetInfo
from pdm_tf.errors import UserError
from pdm_tf.evaluation.evaluate import Drawing, compare, default_folder, measure_likelihood
from pdm_tf.evaluation.features import load_detector, of_crops
from pdm_tf.models import Model


@dataclass(frozen=True)
class Options(DrawingOptions, OutputOptions, DeviceOptions, DataOptions):
    """Measure how far a run's images, or those of files, are from the data's."""

    num_samples: Optional[int] = setting(
        None,
        "Images to draw, 500 by default; with --likelihood: to measure, by default all held-out ones.",
        above=0,
    )
    samples: tuple[str, ...] = setting(
        (),
        "Images to evaluate, an .npz with arr_0 or a folder: instead of drawing any, or beside --run_dir's.",
    )
    equal_shares: bool = setting(
        False, "Draw as many images of each class, whatever the classes' shares of the reference."
    )
    reference: str = setting(
        "train",
        "What to compare with: a split of the data set, an .npz of images or of statistics (ADM's), or a "
        "folder.",
    )
    ema: tuple[float, ...] = setting(
        (),
        "Evaluate averages of the weights over these parts of the run, such as 0.01,0.03,0.1: one row for "
        "each (see --ema_length of --mode=sample).",
    )
    detector: str = setting(
        "efficientnet_lite0",
        "The network whose features are compared: efficientnet_lite0, inception, or a Keras model's path.",
    )
    crops: int = setting(
        0,
        "Compare random squares of this side at full resolution, four an image, instead of whole images.",
        least=0,
    )
    inception: Optional[str] = setting(
        None, "ADM's classify_image_graph_def.pb, if it is not in ~/.cache/pdm_tf."
    )
    likelihood: bool = setting(
        False,
        "Measure bits per dimension of the held-out split, the variational bound, instead of distances.",
    )
    strata: Optional[int] = setting(
        None,
        "With --likelihood: an unbiased estimate from this many t for each image; by default all t.",
        above=0,
    )

    @property
    def default_out(self) -> str:
        if self.samples and not self.run_dir:
            return default_folder(self.samples)
        return os.path.join(self.run_dirs()[0], "evaluation")

    def reference_data(self, models: Sequence[Model]) -> DatasetInfo:
        """The data set that has the split to compare with; UserError if nothing names one."""
        require(
            models or self.dataset,
            "--samples: name the data set to compare with by --dataset, or a file or folder by --reference",
        )
        return self.trained_data(models[0].config.data if models else None)


# Options of drawing, beside those of `SamplingConfig`, which files alone have no use for.
ONLY_DRAWING = ("guide", "seed", "num_samples", "sample_batch_size", "labels", "equal_shares", "ema")
# Options of distances, which a likelihood has no use for.
ONLY_DISTANCES = (
    "samples", "equal_shares", "reference", "ema", "detector", "crops", "inception", "guide", "labels",
)  # fmt: skip


def run(options: Options) -> None:
    """Measures; all that can be refused is looked at before anything is drawn."""
    if options.likelihood:
        run_likelihood(options)
        return
    require(options.strata is None, "--strata is for --likelihood: give both, or leave it out")
    only_files = bool(options.samples) and not options.run_dir
    if only_files:
        where = "with --samples alone: give --run_dir, too, or leave it out"
        refuse_idle(options, given_fields(SamplingConfig, options), ONLY_DRAWING, where)
        # Files are compared here, whatever cluster this machine is of.
        place = Place("cpu" if options.strategy == "cpu" else devices.of_this_machine())
    else:
        place = options.place_to_draw()
    # First: once a detector has looked at an image TensorFlow keeps the devices that it has.
    strategy = devices.make_strategy(place.strategy)
    detector = load_detector(options.detector, options.inception)
    if options.crops:
        detector = of_crops(detector, options.crops)
    out = options.out_folder(options.default_out)
    models = [] if only_files else options.models()
    labels = [class_numbers(options.labels, model.config) or () for model in models]
    drawing = Drawing(
        count=options.num_samples or 500,
        seed=options.seed,
        batch_size=options.sample_batch_size or 0,
        labels=labels[0] if labels else (),
        equal_shares=options.equal_shares,
        ema_lengths=tuple(dict.fromkeys(options.ema)),
        strategy=strategy,
        strategy_name=place.strategy,
        share=place.share,
    )
    compare(
        out,
        detector,
        options.reference,
        lambda: options.reference_data(models),
        sample_paths=options.samples,
        models=models,
        drawing=drawing,
    )
    place.is_helper(out)


def run_likelihood(options: Options) -> None:
    """Bits per dimension of a model on its held-out split (Section 4.1)."""
    sampling = given_fields(SamplingConfig, options).keys() - {"variance"}
    refuse_idle(options, sampling, ONLY_DISTANCES, "with --likelihood: leave it out")
    # Its variance is that of the bound's terms, whichever sampler draws.
    model = options.model(**({"sampler": "ancestral"} if options.variance else {}))
    strategy = options.chosen_strategy()
    if strategy == "multi_worker":
        raise UserError("a likelihood is measured on one machine: use --strategy=cpu, mirrored or tpu")
    measure_likelihood(
        options.out_folder(options.default_out),
        model,
        options.trained_data(model.config.data),
        count=options.num_samples or 0,
        seed=options.seed,
        strata=options.strata,
        batch_size=options.sample_batch_size or 0,
        strategy=strategy,
    )


def refuse_idle(options: Options, sampling: Iterable[str], names: Iterable[str], where: str) -> None:
    """Raises UserError for the first option that is given and does nothing: of `sampling`, or of `names`."""
    idle = [*sampling, *(name for name in names if getattr(options, name) != getattr(Options, name))]
    if idle:
        raise UserError(f"--{idle[0]} does nothing {where}")
