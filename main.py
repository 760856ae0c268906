"""Patched Diffusion Models: python main.py --mode=train|sample|export|describe."""

import os
import resource
import sys

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
    sys.exit(
        f"pdm_tf runs on Python 3.9, 3.10 or 3.11 (TensorFlow 2.15 has no others); this is "
        f"{sys.version.split()[0]}. Install one, for instance with `pyenv install 3.11` or "
        "`uv python install 3.11`, then run `make setup PYTHON=/path/to/python3.11`."
    )
# TensorFlow's start-up chatter on stderr buries the program's own lines; its exceptions still arrive.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, logging
from absl import flags as absl_flags

from flags import definitions
from flags.definitions import FLAGS
from flags.errors import UserError
from flags.presets import DEFAULT_DATASET

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # "temporary failure": run the same command again


def train():
    """--mode=train: trains in the run folder, or goes on from its newest checkpoint."""
    config = config_of_data()
    from pdm_tf import data, plots
    from pdm_tf.training import loop, strategy

    run_dir = definitions.run_dir()
    info = data.find_dataset(config.data.dataset, FLAGS.data_dir)
    config = config.replace({"data.label_names": info.label_names})
    where = strategy.make_strategy(FLAGS.strategy)
    config = loop.resolve(config, run_dir, where)
    print(config.to_json(), end="", flush=True)
    try:
        loop.train(config, run_dir, info, where)
    except loop.Stopped as stopped:
        print(stopped)
        sys.exit(EXIT_STOPPED)
    if not strategy.is_chief(where):
        return
    plots.loss_curve(run_dir, f"{run_dir}/logs/loss.png")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory: {peak:.2f} GiB")
    print(f"run folder: {run_dir}")
    print(f"loss curve: {run_dir}/logs/loss.png")
    print(f"samples: {run_dir}/samples/step_{config.training.steps:08d}.png")


def sample():
    """--mode=sample: draws or edits images with the averaged weights of a run, or of several experts."""
    from pdm_tf import images
    from pdm_tf.denoiser import load_denoiser, read_experts
    from pdm_tf.sampling import output
    from pdm_tf.sampling.sampler import Sampler, cycled_labels
    from pdm_tf.training import strategy

    chosen = strategy.choose()[0] if FLAGS.strategy == "auto" else FLAGS.strategy
    if chosen == "multi_worker":
        why = " and TF_CONFIG is set" if FLAGS.strategy == "auto" else ""
        raise UserError(
            f"--strategy={FLAGS.strategy}{why}: samples are drawn on one machine; "
            "use --strategy=cpu, mirrored or tpu"
        )
    # All that can be refused is looked at before any network is made.
    run_dirs = trained_run_dirs()
    config = read_experts(*run_dirs)[0][1]
    settings, labels = definitions.sampling_settings(config), definitions.sampling_labels(config)
    shape = config.data.image_shape
    if FLAGS.init_image:
        settings["init_image"] = images.from_uint8(images.read_image(FLAGS.init_image, shape))
    if FLAGS.mask:
        settings["mask"] = images.read_mask(FLAGS.mask, shape)

    with strategy.make_strategy(FLAGS.strategy).scope():
        _, denoiser = load_denoiser(*run_dirs)
        sampler = Sampler(denoiser, **settings)
    labels = labels or cycled_labels(denoiser, config.data.num_classes or 1)
    out = FLAGS.out or f"{definitions.run_dirs()[0]}/samples"
    what = {
        "seed": FLAGS.seed or 0,
        "count": FLAGS.num_samples,
        "batch_size": FLAGS.sample_batch_size,
        "labels": labels,
    }
    if FLAGS.trajectory:
        output.draw_trajectory(sampler, out, **what, frames=FLAGS.trajectory)
    output.draw_samples(sampler, out, **what, save_pngs=FLAGS.save_pngs)
    if FLAGS.trajectory:
        print(f"trajectory: {out}/trajectory.png and {out}/trajectory.gif")
    print(f"grid: {out}/grid.png")
    print(f"samples: {out}/samples.npz")


def export():
    """--mode=export: a SavedModel of the averaged weights of a run, or of several experts, and a sampler."""
    from pdm_tf.denoiser import load_denoiser, read_experts
    from pdm_tf.export import check_free, export_saved_model, origin

    logging.set_verbosity(logging.WARNING)  # TensorFlow lists every variable of what it saves otherwise
    run_dirs, out = trained_run_dirs(), definitions.export_dir()
    check_free(out)
    runs = read_experts(*run_dirs)
    settings, about = definitions.export_settings(runs[0][1]), origin(runs)
    _, denoiser = load_denoiser(*run_dirs)
    if about != origin(runs):
        raise UserError("training wrote new weights while these were read; run the command again")
    export_saved_model(denoiser, out, settings, about)
    print(f"SavedModel: {out}")
    print(f"how to call it: {out}/README.md")


def trained_run_dirs():
    """The runs to draw from; before there is a default one, the weights that ship with the project."""
    from pdm_tf.denoiser import PRETRAINED

    run_dirs = definitions.run_dirs()
    is_default = FLAGS.run_dir is None and definitions.dataset_name() == DEFAULT_DATASET
    if is_default and not os.path.exists(os.path.join(run_dirs[0], "config.json")):
        print(
            f"no run in {run_dirs[0]}: using the weights that ship with the project, {PRETRAINED}", flush=True
        )
        return [str(PRETRAINED)]
    return run_dirs


def describe():
    """--mode=describe: the resolved config, shapes, parameters and FLOPs, and no compute."""
    config = config_of_data()
    print(config.to_json(), end="", flush=True)
    logging.set_verbosity(logging.ERROR)  # TensorFlow's profiler warns of its own API
    from pdm_tf.describe import describe_network

    print(describe_network(config))


def config_of_data():
    """The config of the command line; a data set without a preset is asked for its shape."""
    dataset = definitions.dataset_name()
    if definitions.is_named(dataset):
        return definitions.config_from_flags()
    from pdm_tf import data

    return definitions.config_from_flags(data.find_dataset(dataset, FLAGS.data_dir))


def main(_):
    """Runs the mode that was asked for; a UserError becomes one line and a status of its own."""
    logging.set_verbosity(logging.INFO)
    try:
        {"train": train, "sample": sample, "export": export, "describe": describe}[FLAGS.mode]()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted: run the same command to go on with what is done", file=sys.stderr)
        sys.exit(EXIT_STOPPED)


def parse_flags(arguments):
    """absl's parser, with its errors on one line."""
    try:
        rest = FLAGS(arguments)
        if len(rest) > 1:
            raise absl_flags.Error(f"unexpected argument {rest[1]!r}; flags are written --name=value")
        return rest
    except absl_flags.Error as error:
        print(
            f"error: {' '.join(str(error).split())} (python main.py --help lists the flags)",
            file=sys.stderr,
        )
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
