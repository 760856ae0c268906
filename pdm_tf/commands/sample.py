"""--mode=sample: draw or edit images with the averaged weights of a run, or of several experts."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any, Optional

from pdm_tf import devices, images
from pdm_tf.atomic import atomic_text
from pdm_tf.commands.options import (
    AverageOptions,
    DeviceOptions,
    DrawingOptions,
    OutputOptions,
    RunOptions,
    class_numbers,
    given_fields,
    overrides,
)
from pdm_tf.config.words import leaves, require, setting
from pdm_tf.errors import UserError
from pdm_tf.paths import Path, as_path
from pdm_tf.sampling import output
from pdm_tf.sampling.batches import SampleBatches
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.sampler import Sampler

EditOptions = overrides(Edit, default="")


@dataclass(frozen=True)
class Options(EditOptions, AverageOptions, DrawingOptions, OutputOptions, DeviceOptions, RunOptions):
    """Draw or edit images."""

    init_image: Optional[str] = setting(None, "An image file to edit.")
    mask: Optional[str] = setting(None, "A mask file: white where --init_image is to be inpainted.")
    trajectory: Optional[int] = setting(None, "Also draw x_theta at this many of the steps.", above=0)
    save_pngs: bool = setting(False, "Write one PNG for each sample too, into the folder pngs of --out.")


def run(options: Options) -> None:
    """Draws, and prints where the files lie; what can be refused is refused before a network is made."""
    place = options.place_to_draw()
    model = options.model(**({"sampler": "ancestral"} if options.mask else {}))
    labels = class_numbers(options.labels, model.config)
    edit = edit_of(options, model.config.data.image_shape)
    with devices.make_strategy(place.strategy).scope():
        options.use_average(model)
        sampler = Sampler(model.denoiser, model.config.sampling, edit)
    count = options.num_samples
    batch_size = options.batch_size(count, sampler.replicas)
    draw = SampleBatches(sampler, options.seed, count, batch_size, labels or (), place.share)
    digest = model.digest
    out = folder_for(options, draw.identity(digest))
    if options.trajectory and not place.share.number:
        output.write_trajectory(draw, out, options.trajectory)
    output.write_images(draw, out, digest, options.save_pngs)
    if place.is_helper(out):
        return
    if options.trajectory:
        print(f"trajectory: {out}/trajectory.png and {out}/trajectory.gif")
    print(f"grid: {out}/grid.png")
    if options.save_pngs:
        print(f"PNGs: {out}/{output.PNGS}")
    print(f"samples: {out}/samples.npz")


def folder_for(options: Options, identity: dict[str, Any]) -> Path:
    """--out, or the first of <run_dir>/samples, samples_2, ... that holds no others, and not more, samples.

    samples.json in it keeps the identity (`SampleBatches.identity`): the same command finds it again.
    """
    default = as_path(options.run_dirs()[0]) / "samples"
    numbered = (default.with_name(f"samples_{number}") for number in itertools.count(2))
    text = json.dumps(identity, indent=1, sort_keys=True) + "\n"
    for out in [as_path(options.out)] if options.out is not None else itertools.chain([default], numbered):
        file = out / "samples.json"
        samples = out / "samples.npz"
        if file.exists():
            fits = file.read_text() == text and held_samples(samples) <= options.num_samples
        else:
            fits = not samples.exists()
        if fits:
            atomic_text(file, text)
            return out
    raise UserError(f"{out} holds samples of other settings (samples.json), or more: choose another --out")


def held_samples(file: Path) -> int:
    """How many images a file of samples holds; of none or a damaged one 0."""
    try:
        return images.samples_shape(file)[0] if file.exists() else 0
    except UserError:
        return 0


def edit_of(options: Options, shape: tuple[int, int, int]) -> Optional[Edit]:
    """The image to edit, and how; what is masked begins from pure noise by default."""
    given = given_fields(Edit, options)
    if options.init_image is None:
        require(options.mask is None and not given, f"--{next(iter(given), 'mask')} needs an --init_image")
        return None
    image = images.from_uint8(images.read_image(options.init_image, shape))
    if options.mask is None:
        idle = [name for name in given if "mask" in leaves(Edit)[name].rule.of]
        require(not idle, f"--{next(iter(idle), '')} needs a --mask")
        return Edit(image, **given)
    return Edit(image, images.read_mask(options.mask, shape), **{"strength": 1.0, **given})
