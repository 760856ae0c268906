"""Patched Diffusion Models: python main.py --mode=train|sample|evaluate|analyze|export|page|describe.

A mode is a file with its options, each of them a flag, and `run(options)`.
"""

import importlib
import sys
from typing import Any

if not (3, 9) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        "pdm_tf runs on Python 3.9 to 3.13 (no TensorFlow that fits has wheels for others); this is "
        f"{sys.version.split()[0]}. Install one, for instance with `uv python install 3.13` or "
        "`pyenv install 3.13`, then run `make setup PYTHON=/path/to/python3.13`."
    )

from absl import logging

from flags.options import HELP, help_text, parse_mode, parse_options
from pdm_tf import errors

COMMANDS = {
    "train": "pdm_tf.commands.train",
    "sample": "pdm_tf.commands.sample",
    "evaluate": "pdm_tf.commands.evaluate",
    "analyze": "pdm_tf.commands.analyze",
    "export": "pdm_tf.commands.export",
    "page": "pdm_tf.commands.page",
    "describe": "pdm_tf.commands.describe",
}
MODES = tuple(COMMANDS)


def options_of(mode: str) -> type:
    """The dataclass of a mode's options; imports the mode's file, and no other's."""
    return importlib.import_module(COMMANDS[mode]).Options


def parse(arguments: list[str]) -> tuple[str, Any]:
    """The mode of a command line, and its options."""
    mode = parse_mode(arguments, MODES)
    return mode, parse_options(arguments, mode, MODES, options_of)


def run(arguments: list[str]) -> None:
    """Runs the mode of a command line, or prints the flags of that mode, or of all."""
    if HELP & set(arguments):
        mode = parse_mode(arguments, ("", *MODES))
        shown = [mode] if mode else MODES
        print(__doc__.strip(), *(help_text(mode, options_of(mode)) for mode in shown), sep="\n\n")
        return
    mode, options = parse(arguments)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)  # TFDS and TensorFlow report each file that they open otherwise
    importlib.import_module(COMMANDS[mode]).run(options)


<<<<<<< HEAD
def sample():
    """--mode=sample: draws or edits images with the averaged weights of a run, or of several experts."""
    from pdm_tf import devices as strategy
    from pdm_tf import images
    from pdm_tf.sampling import output
    from pdm_tf.sampling.batches import SampleBatches
    from pdm_tf.sampling.edit import Edit
    from pdm_tf.sampling.sampler import Sampler

    chosen, share = sampling_place()
    # All that can be refused is looked at before any network is made.
    model, out = trained_model(), out_dir()
    config = model.config
    labels, shape = definitions.sampling_labels(config), config.data.image_shape
    image = images.from_uint8(images.read_image(FLAGS.init_image, shape)) if FLAGS.init_image else None
    mask = images.read_mask(FLAGS.mask, shape) if FLAGS.mask else None
    with strategy.make_strategy(chosen).scope():
        denoiser = loaded(model).denoiser
        edit = None if image is None else Edit(image, mask, **definitions.edit_options())
        sampler = Sampler(denoiser, config.sampling, edit)
    count = definitions.num_samples()
    batch_size = definitions.sample_batch_size(count, sampler.replicas)
    draw = SampleBatches(sampler, FLAGS.seed or 0, count, batch_size, labels or (), share)
    if FLAGS.trajectory and not share.number:
        output.write_trajectory(draw, out, FLAGS.trajectory)
    output.write_images(draw, out, FLAGS.save_pngs)
    if drawn_for_another(share, out):
        return
    if FLAGS.trajectory:
        print(f"trajectory: {out}/trajectory.png and {out}/trajectory.gif")
    print(f"grid: {out}/grid.png")
    if FLAGS.save_pngs:
        print(f"PNGs: {out}/{output.PNGS}")
    print(f"samples: {out}/samples.npz")


def sampling_place():
    """The strategy to sample with, and the share: the workers of a cluster each draw their own, alone."""
    from pdm_tf import devices as strategy
    from pdm_tf.ledger import Share

    chosen = choose_strategy()
    if chosen != "multi_worker":
        return chosen, Share()
    number, workers = strategy.place_in_cluster()
    chosen = strategy.of_this_machine()
    print(
        f"strategy: worker {number} of {workers} draws one of every {workers} batches, {chosen}", flush=True
    )
    return chosen, Share(number, workers, strategy.connect_seconds())


def drawn_for_another(share, out) -> bool:
    """Whether this process has drawn its share for worker 0, which writes the rest; says so."""
    if share.number:
        print(f"worker {share.number} of {share.workers}: its share is drawn; worker 0 writes {out}")
    return share.number > 0


def out_dir():
    """--out, or the mode's default, as a path."""
    from pdm_tf.paths import as_path

    return as_path(FLAGS.out or definitions.default_out(asked_folders()))


def evaluate():
    """--mode=evaluate: distances of runs' or files' images to a reference; are they copies?"""
    from pdm_tf import stack
    from pdm_tf.evaluation import report, subjects
    from pdm_tf.evaluation.features import load_detector

    definitions.check_likelihood()
    if FLAGS.likelihood:
        likelihood()
        return
    # All that can be refused is looked at before anything is drawn.
    lengths = definitions.ema_lengths()
    detector, out = load_detector(FLAGS.detector, FLAGS.inception), out_dir()
    models = [] if FLAGS.samples and not FLAGS.run_dir else trained_models(lengths)
    for model in models:
        definitions.sampling_labels(model.config)
    place = sampling_place() if models else None
    reference, held_out = reference_of(detector, models[0].config.data if models else None)
    rows = []
    for path in FLAGS.samples:
        with looking_at(path) as bar:
            rows.append(subjects.of_path(detector, path, bar.update))
    several = len(models) > 1 or len(lengths) > 1
    for model in models:
        rows += drawn_rows(detector, reference, model, lengths, out, several, place)
    if place and drawn_for_another(place[1], out):
        return
    report.report(detector, reference, rows, out, stack.versions(), held_out)
    for row in rows:
        row.finish()


def likelihood():
    """--mode=evaluate --likelihood: bits per dimension of a model on its held-out split (Section 4.1)."""
    from pdm_tf import data, stack
    from pdm_tf import devices as strategy
    from pdm_tf.atomic import remove_tree
    from pdm_tf.evaluation.likelihood import Likelihood, held_out_batches, report_bits, ways_from

    model = trained_model()
    config = model.config
    info = trained_data(config.data)
    split = data.held_out_split(info)
    if split is None:
        raise UserError(f"{info.name} has no held-out split, and training images would flatter the model")
    count = min(FLAGS.num_samples or info.num_examples[split], info.num_examples[split])
    out, seed, chosen, size = out_dir(), FLAGS.seed or 0, one_machine(), definitions.sample_batch_size(count)
    with strategy.make_strategy(chosen).scope():
        measure = Likelihood(model.denoiser, ways_from(config.sampling.variance))
    batches = held_out_batches(info, split, config.data.image_shape, size, count)
    kept = out / ".unfinished-likelihood"
    bits = measure(batches, seed=seed, strata=FLAGS.strata, count=count, folder=kept)
    origin = {"origin": model.origin, "digest": model.digest, "strategy": chosen, "stack": stack.versions()}
    about = {"split": split, "seed": seed, **origin}
    report_bits(bits, out, about)
    remove_tree(kept)


def reference_of(detector, data):
    """--reference, and what copies of it are looked for with; `data`: the models' DataConfig or None."""
    from pdm_tf.data import held_out_split, uint8_batches
    from pdm_tf.evaluation import references, report
    from pdm_tf.paths import as_path

    name, no_copies = FLAGS.reference, "the reference is no data set's training split"
    if as_path(name).exists():
        with looking_at(name) as bar:
            return references.of_path(detector, name, progress=bar.update), no_copies
    info = trained_data(data)
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


def trained_data(data):
    """The data set of the models' DataConfig, wherever --dataset says that it lies now; None: --dataset's."""
    from pdm_tf.data import find_dataset

    named = definitions.dataset_name() if FLAGS.dataset or not data else data.dataset
    info = find_dataset(named, FLAGS.data_dir)
    if data and data.sha256 and data.sha256 != info.sha256:
        raise UserError(
            f"{info.directory} holds other data than {data.dataset}, which the model has learnt from: name "
            "the place where that lies now with --dataset"
        )
    return info


def drawn_rows(detector, reference, model, lengths, out, several: bool, place):
    """The table's row of a model's own samples, or one for each of the lengths of its averages."""
    from pdm_tf import devices as strategy
    from pdm_tf.evaluation import subjects
    from pdm_tf.sampling.batches import SampleBatches
    from pdm_tf.sampling.sampler import Sampler

    (chosen, share), seed, count = place, FLAGS.seed or 0, definitions.num_samples()
    config = model.config
    model.use_ema_length(next(iter(lengths), None))
    with strategy.make_strategy(chosen).scope():
        sampler = Sampler(model.denoiser, config.sampling)
    how, labels = "in turn", definitions.sampling_labels(config)
    if not labels:
        counts = [] if FLAGS.equal_shares else reference.what.get("label_counts", [])
        how = "shares of the reference" if counts else "equal shares"
        labels = subjects.shared_labels(counts or [1] * (config.data.num_classes or 1), count, seed)
    batch_size = definitions.sample_batch_size(count, sampler.replicas)
    draw = SampleBatches(sampler, seed, count, batch_size, labels, share)
    about = {"sampling": dataclasses.asdict(config.sampling), "labels": how, "strategy": chosen}
    return subjects.of_averages(detector, model, draw, lengths, out, about, several)


def analyze():
    """--mode=analyze: a table or figure of the paper, of runs and the data that they learnt from."""
    from pdm_tf.analysis.kinds import report
    from pdm_tf.analysis.subject import Subject
    from pdm_tf.run import RunFolder

    definitions.check_analysis()
    models = trained_models(())
    # Several runs are evaluated in the folder of the first, and the shipped one in the default run's.
    places = [RunFolder(asked_folders()[0]).evaluation]
    labels = definitions.sampling_labels(models[0].config)
    info, count = trained_data(models[0].config.data), definitions.num_samples()
    how_much = (FLAGS.seed or 0, count, definitions.sample_batch_size(count), labels, FLAGS.memory_gib)
    subject = Subject(models, info, *how_much, places)
    report(FLAGS.what, subject, out_dir())


def looking_at(what: str, count=None):
    """A progress bar of images that a detector looks at, shown if it takes a while."""
    from pdm_tf import progress

    return progress.bar(desc=f"look at {what}", total=count, unit="image", delay=2)


def export():
    """--mode=export: a SavedModel of the averaged weights of a run, or of several experts, and a sampler; or
    a run's weights for other frameworks."""
    from pdm_tf.export import check_free, export_saved_model, export_weights

    model, out = trained_model(), out_dir()
    check_free(out)
    if FLAGS.format == "safetensors":
        print(f"weights: {export_weights(model, FLAGS.ema_length, out)}")
        print(f"their names and shapes: {out}/README.md")
        return
    export_saved_model(loaded(model), out)
    print(f"SavedModel: {out}")
    print(f"how to call it: {out}/README.md")


def page():
    """--mode=page: a page in the browser, to draw, edit and paint with models, and to look inside."""
    from pdm_tf.models import models_from_folders
    from pdm_tf.page import layout
    from pdm_tf.page.studio import Studio

    models = models_from_folders(*trained_folders())
    infos = [data_at_hand(model.config.data) for model in models]
    layout.serve(Studio(models, infos), FLAGS.host, FLAGS.port)


def data_at_hand(data):
    """`trained_data`, or None, which is said: without it there is less to see."""
    try:
        return trained_data(data)
    except UserError as error:
        print(f"note: no x* and no pictures of the data: {error}", flush=True)
        return None


def describe():
    """--mode=describe: the config that training would use, shapes, parameters and FLOPs, and no compute."""
    config, _, size = training_config(dataset_info(needed=False))
    from pdm_tf.describe import describe_network

    print(config.to_json() + size, end="", flush=True)
    print(describe_network(config))


def training_config(info):
    """The config that a run trains with here, its folder, and a line on its network's size, or ""."""
    from pdm_tf import devices as strategy
    from pdm_tf.run import RunFolder
    from pdm_tf.training import loop

    folder, begun_from = RunFolder(definitions.run_dir()), definitions.parent_dir()
    chosen = strategy.choose(FLAGS.strategy)[0]
    earlier = folder.config() if folder.has_config() else None
    # A run that goes on needs the folder that it began from no more.
    parent = RunFolder(begun_from).config() if begun_from and not earlier else None
    accelerator = strategy.has_accelerator(chosen)
    config = definitions.training_config(info, accelerator, earlier, parent)
    config = loop.resolve(config, folder, strategy.fitting_precision(chosen))
    return config, folder, definitions.size_chosen(accelerator, earlier, parent)


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
    from pdm_tf import devices as strategy

    chosen, reason = strategy.choose(FLAGS.strategy)
    if chosen != FLAGS.strategy and FLAGS.mode != "describe":
        print(f"strategy: {chosen} ({reason})", flush=True)
    return chosen


def one_machine() -> str:
    """`choose_strategy`, of those for one machine."""
    chosen = choose_strategy()
    if chosen == "multi_worker":
        raise UserError(
            "strategy multi_worker: a likelihood is measured on one machine; use "
            "--strategy=cpu, mirrored or tpu"
        )
    return chosen


def trained_model():
    """The run, or experts, to draw from, sampled as the flags say."""
    from pdm_tf.models import Model

    model = Model.from_folders(*trained_folders())
    model.config = definitions.with_sampling_flags(model.config)
    return model


def trained_models(lengths):
    """The models to evaluate; refuses lengths that averages of them cannot have."""
    from pdm_tf.models import models_from_folders

    models = models_from_folders(*trained_folders())
    for model in models:
        model.check_ema_lengths(lengths)
        if any(key.startswith("data.") for key in changes(model.config, models[0].config)):
            raise UserError(f"{model} and {models[0]} are of different data: evaluate one at a time")
        model.config = definitions.with_sampling_flags(model.config)
    return models


def trained_folders():
    """The folders of runs to draw from; before there is a default one, that which ships for its data set."""
    from pdm_tf.run import PRETRAINED, RunFolder

    run_dirs = asked_folders()
    dataset = definitions.dataset_name()
    shipped, is_default = PRETRAINED / dataset, FLAGS.run_dir is None and definitions.is_named(dataset)
    if is_default and RunFolder(shipped).has_config() and not RunFolder(run_dirs[0]).has_config():
        print(f"no run in {run_dirs[0]}: using the weights that ship with the project, {shipped}", flush=True)
        run_dirs = [shipped]
    return run_dirs


def asked_folders():
    """The folders of --run_dir, or the default one."""
    from pdm_tf.run import RunFolder

    return definitions.run_dirs(lambda text: RunFolder(text).has_config())


def loaded(model):
    """The model with the averaged weights that were asked for; says what they are if they are made."""
    from pdm_tf.models import origin_text

    model.use_ema_length(FLAGS.ema_length)
    for origin in model.origin if FLAGS.ema_length else ():
        print(origin_text(origin), flush=True)
    return model


def one_mode():
    """Runs the mode that was asked for."""
    definitions.check_mode()
    modes = {"train": train, "sample": sample, "evaluate": evaluate, "analyze": analyze}
    {**modes, "export": export, "page": page, "describe": describe}[FLAGS.mode]()


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
    except (absl_flags.Error, ValueError) as error:  # of flags of its own absl raises these
        print(
            f"error: {one_line(error)} (python main.py --help lists the flags)",
            file=sys.stderr,
        )
        sys.exit(EXIT_USER_ERROR)
=======
def main(arguments: list[str]) -> int:
    """Runs a command line and returns its exit status."""
    return errors.run(lambda: run(arguments))
>>>>>>> ec91190 (A command is one file: options and run; flags are their fields; a training config is resolved in one function)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
