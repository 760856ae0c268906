"""Patched Diffusion Models: python main.py --mode=train|sample|export|describe."""

import os
import sys

if not (3, 9) <= sys.version_info[:2] <= (3, 11):
    sys.exit(
        f"pdm_tf runs on Python 3.9, 3.10 or 3.11 (TensorFlow 2.15 has no others); this is "
        f"{sys.version.split()[0]}. Install one, for instance with `pyenv install 3.11` or `uv python install "
        "3.11`, then run `make setup PYTHON=/path/to/python3.11`."
    )
# TensorFlow's start-up chatter on stderr buries the program's own lines; its exceptions still arrive.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, logging
from absl import flags as absl_flags

from flags import definitions
from flags.definitions import FLAGS
from flags.errors import UserError

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75  # "temporary failure": run the same command again


def train():
    """--mode=train: trains in the run folder, or goes on from its newest checkpoint."""
    config = config_of_data()
    from pdm_tf import data
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
    print(f"run folder: {run_dir}")
    print(f"samples: {run_dir}/samples/step_{config.training.steps:08d}.png")


def sample():
    """--mode=sample: draws images with a run's averaged weights."""
    from pdm_tf.denoiser import load_denoiser
    from pdm_tf.images import image_grid, to_uint8, write_png, write_samples
    from pdm_tf.sampling.sampler import Sampler, cycled_labels, draw

    run_dir = definitions.run_dir()
    config, denoiser = load_denoiser(run_dir)
    labels = definitions.sampling_labels(config) or cycled_labels(denoiser, config.data.num_classes or 1)
    sections = definitions.sampling_sections(config.diffusion.num_timesteps)
    if FLAGS.guidance != 1.0 and not denoiser.conditional:
        raise UserError(
            f"--guidance={FLAGS.guidance:g}: {run_dir} has no classes to guide with; leave the flag out"
        )
    sampler = Sampler(denoiser, sections=sections, guidance=FLAGS.guidance)
    images, labels = draw(sampler, FLAGS.seed or 0, FLAGS.num_samples, FLAGS.sample_batch_size, labels)
    images = to_uint8(images)
    out = FLAGS.out or f"{run_dir}/samples"
    write_samples(f"{out}/samples.npz", images, labels if denoiser.conditional else None)
    write_png(f"{out}/grid.png", image_grid(images))
    if FLAGS.save_pngs:
        for number, image in enumerate(images):
            write_png(f"{out}/sample_{number:06d}.png", image)
    print(f"grid: {out}/grid.png")
    print(f"samples: {out}/samples.npz")


def export():
    """--mode=export: a SavedModel of a run's averaged weights, with the sampling of --mode=sample."""
    from pdm_tf.denoiser import load_denoiser, newest_ema
    from pdm_tf.export import check_free, export_saved_model

    logging.set_verbosity(logging.WARNING)  # TensorFlow lists every variable of what it saves otherwise
    run_dir, out = definitions.run_dir(), definitions.export_dir()
    check_free(out)
    config, denoiser = load_denoiser(run_dir)
    sampling = {"sections": definitions.sampling_sections(config.diffusion.num_timesteps)}
    runs = [{"run": run_dir, "weights": newest_ema(run_dir).name}]
    export_saved_model(denoiser, out, sampling, {"label_names": config.data.label_names, "runs": runs})
    print(f"SavedModel: {out}")
    print(f"how to call it: {out}/README.md")


def describe():
    """--mode=describe: the resolved config, shapes, parameters and FLOPs, and no compute."""
    config = config_of_data()
    print(config.to_json(), end="", flush=True)
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
