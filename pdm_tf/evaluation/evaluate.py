"""An evaluation as a whole: images of models and files against a reference, or a model's likelihood."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import tensorflow as tf

from pdm_tf import stack
from pdm_tf.atomic import atomic_json
from pdm_tf.data import DatasetInfo, held_out_split, stored_image
from pdm_tf.devices import make_strategy
from pdm_tf.errors import UserError
from pdm_tf.evaluation import image_sets, references
from pdm_tf.evaluation.copies import CopyCheck
from pdm_tf.evaluation.features import Detector
from pdm_tf.evaluation.image_sets import ImageSet, looking_at
from pdm_tf.evaluation.likelihood import Likelihood, held_out_batches
from pdm_tf.evaluation.references import Reference
from pdm_tf.evaluation.report import report
from pdm_tf.ledger import Ledger, Share, note_others
from pdm_tf.models import Model
from pdm_tf.paths import as_path
from pdm_tf.sampling.batches import SampleBatches, default_batch
from pdm_tf.sampling.sampler import Sampler


@dataclass(frozen=True)
class Drawing:
    """How samples of models are drawn."""

    count: int = 500  # of each model
    seed: int = 0
    batch_size: int = 0  # samples at a time; 0: the default
    labels: Sequence[int] = ()  # classes to draw in turn; (): each class in its share of the reference
    equal_shares: bool = False  # as many of each class instead
    # Lengths of averages, one set of samples for each; (): the averages of `training.ema_decay`.
    ema_lengths: Sequence[float] = ()
    strategy: tf.distribute.Strategy = field(default_factory=tf.distribute.get_strategy)
    strategy_name: str = "cpu"  # as `pdm_tf.devices` names it
    share: Share = field(default_factory=Share)

    def batches(self, model: Model, reference: Reference) -> tuple[SampleBatches, str]:
        """The samples of a model, and how their labels were chosen."""
        with self.strategy.scope():
            sampler = Sampler(model.denoiser, model.config.sampling)
        labels = self.labels
        chosen = "in turn"
        if not labels:
            counts = [] if self.equal_shares else reference.label_counts
            chosen = "shares of the reference" if counts else "equal shares"
            shares = counts or [1] * max(1, model.config.data.num_classes)
            labels = image_sets.shared_labels(shares, self.count, self.seed)
        batch_size = self.batch_size or default_batch(self.count, sampler.replicas)
        return SampleBatches(sampler, self.seed, self.count, batch_size, labels, self.share), chosen


def compare(
    out: str | os.PathLike,
    detector: Detector,
    reference: str,
    find_info: Callable[[], DatasetInfo],
    *,
    sample_paths: Sequence[str] = (),
    models: Sequence[Model] = (),
    drawing: Drawing | None = None,
) -> None:
    """Measures the images of files and of models, prints a table, and writes evaluation.json to `out`.

    Args:
      reference, find_info: as of `find_reference`.
      sample_paths: files or folders of images.
      models: of one data set.
    """
    drawing = drawing or Drawing()
    # What can be refused is refused before the reference is made.
    for path in sample_paths:
        references.open_images(path)
    for model in models:
        model.check_ema_lengths(drawing.ema_lengths)
    image_shape = models[0].config.data.image_shape if models else None
    found, copy_check = find_reference(detector, reference, find_info, image_shape)

    def sets() -> Iterator[ImageSet]:
        if not drawing.share.number:
            for path in sample_paths:
                yield image_sets.from_path(detector, path)
        for model in models:
            if drawing.ema_lengths:
                model.use_ema_length(drawing.ema_lengths[0])
            samples, chosen = drawing.batches(model, found)
            details = {"labels": chosen, "strategy": drawing.strategy_name}
            yield from image_sets.from_model(detector, model, samples, drawing.ema_lengths, out, details)

    if drawing.share.number:
        assert not list(sets()), "worker 0 alone has sets of images"
        return
    report(detector, found, sets(), out, copy_check)
    note_others(out, [])


def default_folder(sample_paths: Sequence[str]) -> str:
    """evaluations/NAME, whose name is another for other paths, though their last parts be alike."""
    name = re.sub(r"\W+", "_", "_".join(sample_paths)).strip("_")[-60:]
    whole = "\n".join(os.path.abspath(path) for path in sample_paths)
    digest = hashlib.sha256(whole.encode(errors="surrogateescape")).hexdigest()
    return os.path.join("evaluations", f"{name}_{digest[:8]}")


def find_reference(
    detector: Detector,
    name: str,
    find_info: Callable[[], DatasetInfo],
    image_shape: Sequence[int] | None = None,
) -> tuple[Reference, CopyCheck | str]:
    """A reference by its name, and the check for copies of it, or the reason why there is none.

    Args:
      name: a file or folder (`references.of_path`), or a split of the data set, which "train" always is.
      find_info: gives the data set, if it is needed.
      image_shape: of a split's images; None: as they are stored.
    Raises:
      UserError: there is no such reference, or it is damaged.
    """
    if name != "train" and as_path(name).exists():
        if name.isidentifier():
            print(f"note: the reference is the file or folder ./{name}, and no split")
        with looking_at(name) as shown:
            found = references.of_path(detector, name, progress=shown.update)
        return found, "the reference is no data set's training split"
    info = find_info()
    if not info.num_examples.get(name):
        raise UserError(
            f"reference {name}: there is no such file or folder, and {info.name} has the splits "
            f"{', '.join(sorted(info.num_examples))}"
        )
    with looking_at(name, info.num_examples[name]) as shown:
        found = references.of_split(detector, info, name, image_shape, progress=shown.update)
    if detector.rows > 1:
        return found, "the detector looks at crops"
    if name != "train":
        return found, "the reference is no data set's training split"
    held_out = held_out_split(info)
    if held_out is None:
        return found, f"{info.name} has no held-out split"
    unseen = references.of_split(detector, info, held_out, image_shape)
    check = CopyCheck(found, unseen, lambda place: stored_image(info, "train", place, image_shape))
    if not len(check.unseen):
        return found, f"all images of the split {held_out} are training images, too"
    return found, check


def measure_likelihood(
    out: str | os.PathLike,
    model: Model,
    info: DatasetInfo,
    *,
    count: int = 0,
    seed: int = 0,
    strata: int | None = None,
    batch_size: int = 0,
    strategy: str = "cpu",
) -> None:
    """Measures a model's bits per dimension on held-out images; writes likelihood.json to `out`.

    Args:
      count: images, the first of the split; 0, or more than there are: all.
      strata: as of `Likelihood`.
      batch_size: images at a time; 0: the default.
    Raises:
      UserError: there is no held-out split, or as `Likelihood`.
    """
    if model.config.is_student:
        raise UserError(
            f"{model} is a student, which knows few of the t in a likelihood: measure its teacher's"
        )
    split = held_out_split(info)
    if split is None:
        raise UserError(f"{info.name} has no held-out split, and training images would flatter the model")
    count = min(count or info.num_examples[split], info.num_examples[split])
    batch_size = batch_size or default_batch(count)
    variance = model.config.sampling.variance
    with make_strategy(strategy).scope():
        likelihood = Likelihood(model.denoiser, variance)
    details = {
        "digest": model.digest,
        "data_sha256": info.sha256,
        "split": split,
        "seed": seed,
        "strata": strata,
        "variance": variance,
        "strategy": strategy,
    }
    ledger = Ledger(out, {**details, "batch_size": batch_size, "count": count})
    batches = held_out_batches(info, split, model.config.data.image_shape, batch_size, count)
    bits = likelihood(batches, seed=seed, strata=strata, count=count, ledger=ledger)
    file = as_path(out) / "likelihood.json"
    atomic_json(file, {**details, "origin": model.origin, "stack": stack.versions(), **bits.to_json()})
    print(bits.table())
    print(f"likelihood: {file}")
    ledger.remove()
