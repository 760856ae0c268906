"""Patched Diffusion Models: python main.py --mode=train|sample|evaluate|export|describe."""

import dataclasses
import os
import resource
import sys

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
    sys.exit(
        f"pdm_tf runs on Python 3.9, 3.10 or 3.11 (TensorFlow 2.15 has no others); this is "
        f"{sys.version.split()[0]}. Install one, for instance with `pyenv install 3.11` or "
        "`uv python install 3.11`, then run `make setup PYTHON=/path/to/python3.11`."
    )

from absl import app, logging
from absl import flags as absl_flags

from flags import definitions
from flags.definitions import FLAGS
from flags.errors import EXIT_USER_ERROR, UserError, one_line, run
from flags.presets import DEFAULT_DATASET


def train():
    """--mode=train: trains in the run folder, or goes on from its newest checkpoint."""
    info = dataset_info()
    config = definitions.training_config(info)
    from pdm_tf import plots
    from pdm_tf.run import RunFolder
    from pdm_tf.training import loop, strategy

    folder, chosen = RunFolder(definitions.run_dir()), choose_strategy()
    config = loop.resolve(config, folder, on_tpu=chosen == "tpu")
    where = strategy.make_strategy(chosen)
    print(config.to_json(), end="", flush=True)
    loop.train(config, folder, info, where)
    if not strategy.is_chief(where):
        return
    plots.loss_curve(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory: {peak:.2f} GiB")
    print(f"run folder: {folder}")
    print(f"loss curve: {folder.loss_curve}")
    print(f"samples: {folder.preview(config.training.steps)}")


def sample():
    """--mode=sample: draws or edits images with the averaged weights of a run, or of several experts."""
    from pdm_tf import images
    from pdm_tf.experts import load
    from pdm_tf.sampling import output
    from pdm_tf.sampling.batches import Draw
    from pdm_tf.sampling.sampler import Sampler, cycled_labels
    from pdm_tf.training import strategy

    chosen, share = sampling_place()
    # All that can be refused is looked at before any network is made.
    runs, out = trained_runs(), out_dir()
    config = definitions.with_sampling_flags(runs[0].config)
    labels, shape = definitions.sampling_labels(config), config.data.image_shape
    image = images.from_uint8(images.read_image(FLAGS.init_image, shape)) if FLAGS.init_image else None
    mask = images.read_mask(FLAGS.mask, shape) if FLAGS.mask else None
    with strategy.make_strategy(chosen).scope():
        denoiser = load(runs).denoiser
        sampler = Sampler(denoiser, config.sampling, image=image, mask=mask)
    labels = labels or cycled_labels(denoiser, config.data.num_classes or 1)
    draw = Draw(sampler, FLAGS.seed or 0, definitions.num_samples(), FLAGS.sample_batch_size, labels, share)
    if FLAGS.trajectory and not share.number:
        output.write_trajectory(draw, out, FLAGS.trajectory)
    output.write_images(draw, out, FLAGS.save_pngs)
    if share.number:
        print(f"worker {share.number} of {share.workers}: all its batches are done; worker 0 writes {out}")
        return
    if FLAGS.trajectory:
        print(f"trajectory: {out}/trajectory.png and {out}/trajectory.gif")
    print(f"grid: {out}/grid.png")
    print(f"samples: {out}/samples.npz")


def sampling_place():
    """The strategy to sample with, and which batches: the workers of a cluster each draw their own, alone."""
    from pdm_tf.sampling.batches import Share
    from pdm_tf.training import strategy

    chosen = choose_strategy()
    if chosen != "multi_worker":
        return chosen, Share()
    number, workers = strategy.place_in_cluster()
    chosen = strategy.of_this_machine()
    print(f"strategy: worker {number} of {workers} draws every {workers}th batch, {chosen}", flush=True)
    return chosen, Share(number, workers, strategy.CONNECT_SECONDS)


def out_dir():
    """--out, or the mode's default, as a path."""
    from pdm_tf.paths import as_path

    return as_path(definitions.out_dir())


def evaluate():
    """--mode=evaluate: distances of a run's or files' images to a reference; are they copies?"""
    from pdm_tf import stack
    from pdm_tf.data import find_dataset
    from pdm_tf.evaluation import report
    from pdm_tf.evaluation.features import load_detector

    out = out_dir()
    detector = load_detector(FLAGS.detector, FLAGS.inception)
    runs = [] if FLAGS.samples else trained_runs()
    config = definitions.with_sampling_flags(runs[0].config) if runs else None
    dataset = config.data.dataset if config else definitions.dataset_name()
    shape = config.data.image_shape if config else None
    is_split = not os.path.exists(FLAGS.reference)
    info = find_dataset(dataset, FLAGS.data_dir) if is_split else None
    reference = reference_of(detector, info, FLAGS.reference, shape)
    rows = sample_rows(detector) if FLAGS.samples else [drawn_row(detector, runs, config, out)]
    results, shown = [], []
    for row in rows:
        values, count = report.measure(detector, reference, row.features), len(row.features.pooled)
        notes = report.warnings(detector, reference, count)
        shown.append((row.name, count, values))
        results.append({"name": row.name, "images": count, **row.about, **values, "notes": notes})
    if info and "validation" in info.num_examples and FLAGS.reference == "train":
        look_for_copies(detector, info, reference, rows[0], results[0], out)
    report.write_json(out / "evaluation.json", detector, reference, results, stack.versions())
    for row in rows:
        row.finish()
    print(report.table(shown))
    for note in dict.fromkeys(note for result in results for note in result["notes"]):
        print(f"note: {note}")
    print(f"evaluation: {out}/evaluation.json")


def reference_of(detector, info, name: str, shape):
    """--reference: a split of the data set, or what lies at a path."""
    from pdm_tf.evaluation import references

    if info is None:
        return references.of_path(detector, name)
    if name not in info.num_examples:
        raise UserError(
            f"--reference={name}: there is no such file or folder, and {info.name} has the splits "
            f"{', '.join(sorted(info.num_examples))}"
        )
    return references.of_split(detector, info, name, shape)


def sample_rows(detector):
    """A row of the table for each of --samples."""
    from pdm_tf.evaluation.features import extract
    from pdm_tf.evaluation.references import open_images
    from pdm_tf.evaluation.report import Row

    rows = []
    for path in FLAGS.samples:
        features = extract(detector, open_images(path)[1])
        rows.append(Row(path, {"path": path}, features, lambda path=path: open_images(path)[1]))
    return rows


def drawn_row(detector, runs, config, out):
    """The table's row of a run's own samples; finished batches are kept in `out` until all is done."""
    from pdm_tf.atomic import remove_tree
    from pdm_tf.evaluation.features import extract
    from pdm_tf.evaluation.report import Row
    from pdm_tf.experts import load
    from pdm_tf.sampling.batches import Draw
    from pdm_tf.sampling.output import batch_folder
    from pdm_tf.sampling.sampler import Sampler, cycled_labels
    from pdm_tf.training import strategy

    chosen = choose_strategy()
    if chosen == "multi_worker":
        raise UserError("strategy multi_worker: samples are drawn on one machine; use cpu, mirrored or tpu")
    labels = definitions.sampling_labels(config)
    with strategy.make_strategy(chosen).scope():
        loaded = load(runs)
        sampler = Sampler(loaded.denoiser, config.sampling)
    labels = labels or cycled_labels(loaded.denoiser, config.data.num_classes or 1)
    draw = Draw(sampler, FLAGS.seed or 0, definitions.num_samples(), FLAGS.sample_batch_size, labels)
    folder = batch_folder(out, draw)
    features = extract(detector, draw.batches(folder))
    about = {
        "origin": loaded.origin,
        "sampling": dataclasses.asdict(config.sampling),
        "seed": draw.seed,
        "labels": [int(label) for label in labels],
    }
    name = ",".join(str(run.folder) for run in runs)
    return Row(name, about, features, lambda: draw.batches(folder), lambda: remove_tree(folder))


def look_for_copies(detector, info, reference, row, result, out):
    """Adds to a row's result, says and shows how near its images are to training images."""
    from pdm_tf.data import uint8_batches
    from pdm_tf.evaluation import report

    shape = next(iter(row.open())).shape[1:]
    held_out = reference_of(detector, info, "validation", shape)
    found = report.copies(row.features.pooled, reference, held_out)
    result["copies"] = found
    picture = out / "nearest.png"
    report.pairs_picture(row, uint8_batches(info, "train", 64, shape), found, picture)
    share = found["share_nearer_than_95_percent_of_held_out"]
    print(
        f"copies: {share:.1%} of the samples are nearer to a training image than 95% of the held-out images "
        f"are (5% if nothing is copied); the closest pairs: {picture}"
    )


def export():
    """--mode=export: a SavedModel of the averaged weights of a run, or of several experts, and a sampler."""
    from pdm_tf.experts import load
    from pdm_tf.export import check_free, export_saved_model

    runs, out = trained_runs(), out_dir()
    check_free(out)
    config = definitions.with_sampling_flags(runs[0].config)
    export_saved_model(load(runs)._replace(config=config), out)
    print(f"SavedModel: {out}")
    print(f"how to call it: {out}/README.md")


def describe():
    """--mode=describe: the config that training would use, shapes, parameters and FLOPs, and no compute."""
    config = definitions.training_config(dataset_info(needed=False))
    from pdm_tf.describe import describe_network
    from pdm_tf.run import RunFolder
    from pdm_tf.training import loop

    config = loop.resolve(config, RunFolder(definitions.run_dir()), on_tpu=choose_strategy() == "tpu")
    print(config.to_json(), end="", flush=True)
    logging.set_verbosity(logging.ERROR)  # TensorFlow's profiler warns of its own API
    print(describe_network(config))


def dataset_info(needed: bool = True):
    """The data set's own description; None for a named one that is not there, unless it is needed."""
    from pdm_tf import data

    try:
        return data.find_dataset(definitions.dataset_name(), FLAGS.data_dir)
    except UserError:
        if needed or not definitions.is_named(definitions.dataset_name()):
            raise
        return None


def choose_strategy() -> str:
    """--strategy, "auto" decided."""
    from pdm_tf.training import strategy

    chosen, reason = strategy.choose(FLAGS.strategy)
    if chosen != FLAGS.strategy and FLAGS.mode != "describe":
        print(f"strategy: {chosen} ({reason})", flush=True)
    return chosen


def trained_runs():
    """The runs to draw from; before there is a default one, the weights that ship with the project."""
    from pdm_tf.experts import read_runs
    from pdm_tf.run import PRETRAINED, RunFolder

    run_dirs = definitions.run_dirs()
    is_default = FLAGS.run_dir is None and definitions.dataset_name() == DEFAULT_DATASET
    if is_default and not RunFolder(run_dirs[0]).has_config():
        print(
            f"no run in {run_dirs[0]}: using the weights that ship with the project, {PRETRAINED}", flush=True
        )
        run_dirs = [PRETRAINED]
    return read_runs(*run_dirs)


def one_mode():
    """Runs the mode that was asked for."""
    definitions.check_mode()
    {"train": train, "sample": sample, "evaluate": evaluate, "export": export, "describe": describe}[
        FLAGS.mode
    ]()


def main(_):
    """Ends with the status of what happened."""
    logging.set_verbosity(logging.WARNING)  # TFDS and TensorFlow tell of each file that they open otherwise
    status = run(one_mode)
    if status:
        sys.exit(status)


def parse_flags(arguments):
    """absl's parser, with its errors on one line."""
    try:
        rest = FLAGS(arguments)
        if len(rest) > 1:
            raise absl_flags.Error(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        return rest
    except absl_flags.Error as error:
        print(
            f"error: {one_line(error)} (python main.py --help lists the flags)",
            file=sys.stderr,
        )
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
