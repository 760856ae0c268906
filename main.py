"""Patched Diffusion Models: python main.py --mode=train|sample|export|describe."""

import resource
import sys

if not (3, 9) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        "pdm_tf runs on Python 3.9 to 3.13 (no TensorFlow that fits has wheels for others); this is "
        f"{sys.version.split()[0]}. Install one, for instance with `uv python install 3.13` or "
        "`pyenv install 3.13`, then run `make setup PYTHON=/path/to/python3.13`."
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
    config = loop.resolve(config, folder, strategy.fitting_precision(chosen))
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
        denoiser = load(runs).denoiser
        sampler = Sampler(denoiser, config.sampling, image=image, mask=mask)
    labels = labels or cycled_labels(denoiser, config.data.num_classes or 1)
    draw = Draw(sampler, FLAGS.seed or 0, FLAGS.num_samples, FLAGS.sample_batch_size, labels)
    out = definitions.out_dir()
    if FLAGS.trajectory:
        output.write_trajectory(draw, out, FLAGS.trajectory)
    output.write_images(draw, out, FLAGS.save_pngs)
    if FLAGS.trajectory:
        print(f"trajectory: {out}/trajectory.png and {out}/trajectory.gif")
    print(f"grid: {out}/grid.png")
    print(f"samples: {out}/samples.npz")


def export():
    """--mode=export: a SavedModel of the averaged weights of a run, or of several experts, and a sampler."""
    from pdm_tf.experts import load
    from pdm_tf.export import check_free, export_saved_model

    runs, out = trained_runs(), definitions.out_dir()
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
    from pdm_tf.training import loop, strategy

    precision = strategy.fitting_precision(choose_strategy())
    config = loop.resolve(config, RunFolder(definitions.run_dir()), precision)
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
    {"train": train, "sample": sample, "export": export, "describe": describe}[FLAGS.mode]()


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
