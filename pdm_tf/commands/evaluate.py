"""--mode=evaluate: distances of runs' or files' images to a reference, or bits per dimension."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from pdm_tf import devices, progress, stack
from pdm_tf.atomic import remove_tree
from pdm_tf.commands.labels import class_numbers
from pdm_tf.commands.options import (
    DataOptions,
    DeviceOptions,
    DrawingOptions,
    OutputOptions,
    Place,
    RunOptions,
    chosen_strategy,
    last_part,
    output_folder,
    place_to_draw,
    run_dirs,
    trained_data,
    trained_model,
    trained_models,
)
from pdm_tf.config.fields import DataConfig
from pdm_tf.config.words import setting
from pdm_tf.data import held_out_split, uint8_batches
from pdm_tf.errors import UserError
from pdm_tf.evaluation import references, report, subjects
from pdm_tf.evaluation.features import Detector, load_detector
from pdm_tf.evaluation.likelihood import Likelihood, held_out_batches, report_bits, ways_from
from pdm_tf.models import Model
from pdm_tf.paths import as_path
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.sampler import Sampler


@dataclass(frozen=True)
class Options(DrawingOptions, OutputOptions, DeviceOptions, DataOptions, RunOptions):
    """Measure how far a run's images, or those of files, are from the data's."""

    num_samples: Optional[int] = setting(
        None, "Images to draw, 500 by default; of --likelihood images to measure, all by default.", above=0
    )
    samples: tuple[str, ...] = setting(
        (),
        "Images to evaluate: an .npz with arr_0, or a folder of images. Beside a --run_dir's, or instead of "
        "drawing any.",
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
    inception: Optional[str] = setting(
        None, "ADM's classify_image_graph_def.pb, if it is not in ~/.cache/pdm_tf."
    )
    likelihood: bool = setting(
        False,
        "Measure bits per dimension of the held-out split, the variational bound, instead of distances.",
    )
    strata: Optional[int] = setting(
        None,
        "Of --likelihood: estimate the bound from this many t for each image, without bias; by default all "
        "terms.",
        above=0,
    )

    @property
    def default_out(self) -> str:
        """The folder for results, unless another is asked for."""
        if self.samples and not self.run_dir:
            return os.path.join("evaluations", last_part(self.samples[0]))
        return os.path.join(run_dirs(self)[0], "evaluation")


def run(options: Options) -> None:
    """Measures; all that can be refused is looked at before anything is drawn."""
    if options.likelihood:
        measure_likelihood(options)
        return
    lengths = tuple(dict.fromkeys(options.ema))
    detector = load_detector(options.detector, options.inception)
    out = output_folder(options, options.default_out)
    models = [] if options.samples and not options.run_dir else trained_models(options)
    for model in models:
        model.check_ema_lengths(lengths)
        class_numbers(options.labels, model.config)
    place = place_to_draw(options) if models else Place("cpu")
    reference, held_out = reference_of(options, detector, models[0].config.data if models else None)
    rows = []
    for path in options.samples:
        with looking_at(path) as bar:
            rows.append(subjects.of_path(detector, path, bar.update))
    several = len(models) > 1 or len(lengths) > 1
    for model in models:
        rows += drawn_rows(options, detector, reference, model, lengths, out, several, place)
    if place.is_helper(out):
        return
    report.report(detector, reference, rows, out, stack.versions(), held_out)
    for row in rows:
        row.finish()


def measure_likelihood(options: Options) -> None:
    """Bits per dimension of a model on its held-out split (Section 4.1)."""
    model = trained_model(options)
    config = model.config
    info = trained_data(options, config.data)
    split = held_out_split(info)
    if split is None:
        raise UserError(f"{info.name} has no held-out split, and training images would flatter the model")
    strategy = chosen_strategy(options)
    if strategy == "multi_worker":
        raise UserError("a likelihood is measured on one machine: use --strategy=cpu, mirrored or tpu")
    images = info.num_examples[split]
    count = min(options.num_samples or images, images)
    out = output_folder(options, options.default_out)
    with devices.make_strategy(strategy).scope():
        likelihood = Likelihood(model.denoiser, ways_from(config.sampling.variance))
    batches = held_out_batches(info, split, config.data.image_shape, options.batch_size(count), count)
    kept = out / ".unfinished-likelihood"
    bits = likelihood(batches, seed=options.seed, strata=options.strata, count=count, folder=kept)
    about = {"split": split, "seed": options.seed, "origin": model.origin, "digest": model.digest}
    report_bits(bits, out, {**about, "strategy": strategy, "stack": stack.versions()})
    remove_tree(kept)


def reference_of(options: Options, detector: Detector, data: Optional[DataConfig]):
    """--reference, and what copies of it are looked for with; `data`: the models', or None."""
    name, no_copies = options.reference, "the reference is no data set's training split"
    if as_path(name).exists():
        with looking_at(name) as bar:
            return references.of_path(detector, name, progress=bar.update), no_copies
    info = trained_data(options, data)
    shape, held_out = data.image_shape if data else None, held_out_split(info)
    if not info.num_examples.get(name):
        raise UserError(
            f"--reference={name}: there is no such file or folder, and {info.name} has the splits "
            f"{', '.join(sorted(info.num_examples))}"
        )
    with looking_at(name, info.num_examples[name]) as bar:
        reference = references.of_split(detector, info, name, shape, progress=bar.update)
    if name != "train" or held_out is None:
        return reference, no_copies if name != "train" else f"{info.name} has no held-out split"
    unseen = references.of_split(detector, info, held_out, shape)
    return reference, report.HeldOut(unseen, lambda size: uint8_batches(info, "train", 64, size))


def drawn_rows(
    options: Options,
    detector: Detector,
    reference: Any,
    model: Model,
    lengths: Sequence[float],
    out: Path,
    several: bool,
    place: Place,
):
    """The table's row of a model's own samples, or one for each of the lengths of its averages."""
    config = model.config
    model.use_ema_length(next(iter(lengths), None))
    with devices.make_strategy(place.strategy).scope():
        sampler = Sampler(model.denoiser, config.sampling)
    count = options.num_samples or 500
    how, labels = "in turn", class_numbers(options.labels, config)
    if not labels:
        counts = [] if options.equal_shares else reference.what.get("label_counts", [])
        how = "shares of the reference" if counts else "equal shares"
        shares = counts or [1] * (config.data.num_classes or 1)
        labels = subjects.shared_labels(shares, count, options.seed)
    batch_size = options.batch_size(count, sampler.replicas)
    draw = SampleBatches(sampler, options.seed, count, batch_size, labels, place.share)
    about = {"sampling": dataclasses.asdict(config.sampling), "labels": how, "strategy": place.strategy}
    return subjects.of_averages(detector, model, draw, lengths, out, about, several)


def looking_at(name: str, count: Optional[int] = None):
    """A progress bar of images that a detector looks at, shown if it takes a while."""
    return progress.bar(desc=f"look at {name}", total=count, unit="image", delay=2)
