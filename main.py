"""Patched Diffusion Models: python main.py --mode=train|sample|evaluate|export|describe."""

import dataclasses
import os
import pathlib
import resource
import shutil
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
    from pdm_tf.sampling import output
    from pdm_tf.sampling.batches import Draw
    from pdm_tf.sampling.sampler import Sampler, cycled_labels
    from pdm_tf.training import strategy

    chosen = choose_strategy()
    if chosen == "multi_worker":
        raise UserError(
            "strategy multi_worker: samples are drawn on one machine; use --strategy=cpu, mirrored or tpu"
        )
    # All that can be refused is looked at before any network is made.
    runs = trained_runs()
    config = definitions.with_sampling_flags(runs[0].config)
    labels, shape = definitions.sampling_labels(config), config.data.image_shape
    image = images.from_uint8(images.read_image(FLAGS.init_image, shape)) if FLAGS.init_image else None
    mask = images.read_mask(FLAGS.mask, shape) if FLAGS.mask else None
    with strategy.make_strategy(chosen).scope():
        denoiser = loaded_model(runs).denoiser
        sampler = Sampler(denoiser, config.sampling, image=image, mask=mask)
    labels = labels or cycled_labels(denoiser, config.data.num_classes or 1)
    draw = Draw(sampler, FLAGS.seed or 0, definitions.num_samples(), FLAGS.sample_batch_size, labels)
    out = definitions.out_dir()
    if FLAGS.trajectory:
        output.write_trajectory(draw, out, FLAGS.trajectory)
    output.write_images(draw, out, FLAGS.save_pngs)
    if FLAGS.trajectory:
        print(f"trajectory: {out}/trajectory.png and {out}/trajectory.gif")
    print(f"grid: {out}/grid.png")
    print(f"samples: {out}/samples.npz")


def evaluate():
    """--mode=evaluate: distances of runs' or files' images to a reference; are they copies?"""
    from pdm_tf import stack
    from pdm_tf.evaluation import report, subjects
    from pdm_tf.evaluation.features import load_detector

    # All that can be refused is looked at before anything is drawn.
    lengths = definitions.ema_lengths()
    detector, out = load_detector(FLAGS.detector, FLAGS.inception), definitions.out_dir()
    models = trained_models(lengths)
    configs = [definitions.with_sampling_flags(runs[0].config) for runs in models]
    data = configs[0].data if configs else None
    info = evaluated_dataset(data.dataset if data else definitions.dataset_name())
    shape = data.image_shape if data else None
    reference = reference_of(detector, info, shape)
    held_out = held_out_of(detector, info, shape)
    rows = [subjects.of_path(detector, path) for path in FLAGS.samples]
    for runs, config in zip(models, configs):
        several = len(models) > 1 or len(lengths) > 1
        rows += drawn_rows(detector, reference, runs, lengths, config, out, several)
    report.report(detector, reference, rows, out, stack.versions(), held_out)
    for row in rows:
        row.finish()


def evaluated_dataset(name: str):
    """The data set of --reference, which names one of its splits; None where it is a file or folder."""
    from pdm_tf.data import find_dataset

    if os.path.exists(FLAGS.reference):
        return None
    info = find_dataset(name, FLAGS.data_dir)
    if not info.num_examples.get(FLAGS.reference):
        raise UserError(
            f"--reference={FLAGS.reference}: there is no such file or folder, and {info.name} has the splits "
            f"{', '.join(sorted(info.num_examples))}"
        )
    return info


def reference_of(detector, info, shape):
    """--reference: a split of the data set, or what lies at a path."""
    from pdm_tf.evaluation import references

    with definitions.progress("reference", FLAGS.reference) as progress:
        if info is None:
            return references.of_path(detector, FLAGS.reference, progress=progress)
        return references.of_split(detector, info, FLAGS.reference, shape, progress=progress)


def held_out_of(detector, info, shape):
    """What copies of the training split are looked for with, or why they cannot be."""
    from pdm_tf.data import uint8_batches
    from pdm_tf.evaluation import references, report

    if info is None or FLAGS.reference != "train":
        return "the reference is no data set's training split"
    split = info.held_out_split
    if split is None:
        return f"{info.name} has no held-out split"
    return report.HeldOut(
        references.of_split(detector, info, split, shape),
        lambda image_shape: uint8_batches(info, "train", 64, image_shape),
    )


def drawn_rows(detector, reference, runs, lengths, config, out: str, several: bool):
    """The table's row of a model's own samples, or one for each of the lengths of its averages."""
    from pdm_tf.experts import load, with_length
    from pdm_tf.sampling.batches import Draw
    from pdm_tf.sampling.sampler import Sampler
    from pdm_tf.training import strategy

    chosen = choose_strategy()
    if chosen == "multi_worker":
        raise UserError("strategy multi_worker: samples are drawn on one machine; use cpu, mirrored or tpu")
    labels = evaluated_labels(config, reference)
    with strategy.make_strategy(chosen).scope():
        loaded = load(runs, next(iter(lengths), None))
        sampler = Sampler(loaded.denoiser, config.sampling)
    draw = Draw(sampler, FLAGS.seed or 0, definitions.num_samples(), FLAGS.sample_batch_size, labels)
    rows = []
    for length in lengths or [None]:
        if rows:
            loaded = with_length(loaded, runs, length)
        rows.append(drawn_row(detector, draw, runs, loaded, length, config, out, several))
    return rows


def drawn_row(detector, draw, runs, loaded, length, config, out: str, several: bool):
    """The row of one model, with its own average or that of a length."""
    import numpy as np

    from pdm_tf.evaluation import subjects
    from pdm_tf.experts import with_length

    name = ",".join(str(run.folder) for run in runs) + (f" --ema={length}" if length else "")
    about = {
        "origin": loaded.origin,
        "sampling": dataclasses.asdict(config.sampling),
        "seed": draw.seed,
        "label_counts": np.bincount(draw.image_labels).tolist() if loaded.denoiser.conditional else [],
        "labels": "in turn" if FLAGS.labels else "equal shares" if FLAGS.equal_shares else "the data's shares",
        "precision": "float32",
        "strategy": FLAGS.strategy,
    }
    # A folder for each of several, so that another's finished batches are not taken for another command's.
    own = os.path.join(out, ".rows", name.replace(os.sep, "_")) if several else out
    row = subjects.of_draw(detector, draw, own, name, about)

    def take(places):
        if length:
            with_length(loaded, runs, length)
        return row.take(places)

    return row._replace(take=take)


def export():
    """--mode=export: a SavedModel of the averaged weights of a run, or of several experts, and a sampler."""
    from pdm_tf.export import check_free, export_saved_model

    runs, out = trained_runs(), definitions.out_dir()
    check_free(out)
    config = definitions.with_sampling_flags(runs[0].config)
    export_saved_model(loaded_model(runs)._replace(config=config), out)
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


def trained_runs(lengths=()):
    """The runs to draw from; before there is a default one, the weights that ship with the project.

    Refuses those that averages of these lengths cannot be made of.
    """
    from pdm_tf.experts import check_lengths, read_runs
    from pdm_tf.run import PRETRAINED, RunFolder

    run_dirs = definitions.run_dirs()
    is_default = FLAGS.run_dir is None and definitions.dataset_name() == DEFAULT_DATASET
    if is_default and not RunFolder(run_dirs[0]).has_config():
        print(
            f"no run in {run_dirs[0]}: using the weights that ship with the project, {PRETRAINED}", flush=True
        )
        run_dirs = [PRETRAINED]
    runs = read_runs(*run_dirs)
    check_lengths(runs, lengths)
    return runs


def loaded_model(runs):
    """The runs' model with the averaged weights that were asked for; says what they are if they are made."""
    from pdm_tf.experts import load

    loaded = load(runs, FLAGS.ema_length)
    for origin in loaded.origin if FLAGS.ema_length else ():
        print(origin["weights"], flush=True)
    return loaded


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
