"""Writes a denoiser and its sampler as a SavedModel that runs where there is TensorFlow and nothing else."""

from __future__ import annotations

import copy
import json
import os
import typing
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from flags.config import Config
from flags.errors import UserError
from pdm_tf.atomic import atomic_folder
from pdm_tf.denoiser import Denoiser, Experts, newest_ema
from pdm_tf.diffusion.process import learned_log_variance
from pdm_tf.sampling.sampler import Sampler

METADATA = "assets.extra/pdm_tf.json"  # assets.extra is the SavedModel's place for what is not its graph's


def servable(denoiser: Denoiser | Experts, sampling: dict[str, typing.Any]) -> tf.Module:
    """The functions `sample` and `denoise` of a denoiser, ready for `tf.saved_model.save`.

    - sample(seed int32 (), labels int32 (B,), guidance float32 ()) -> {"images": uint8 (B, H, W, C)}. Image i
      has index i of the seed. At guidance 1 each step is one network pass on B images, else one on 2 B.
    - denoise(z float32 (B, H, W, C), t int32 (B,), labels int32 (B,)) -> float32 (B, H, W, C) each: "x",
      x_theta as the network predicts it, neither clipped nor guided; "log_variance", log sigma^2 of
      p(z_{t-1} | z_t) in the full process; "u", its place between log beta (u = 0) and log b_tilde (u = 1).

    Label `num_classes` is the null label; without classes labels only tell how many images to draw. Labels,
    t and guidance beyond their range raise `tf.errors.InvalidArgumentError`.

    Args:
      denoiser: with the weights to save.
      sampling: the arguments of `Sampler` but for the denoiser and the guidance.
    Raises:
      ValueError: the denoiser answers for a part of the process only.
    """
    if (denoiser.t_start, denoiser.t_stop) != (0, len(denoiser.schedule)):
        raise ValueError(f"a denoiser of {denoiser.t_start} <= t < {denoiser.t_stop} is no whole process")
    shared = _traced_once(denoiser)

    def draw(seed, labels, guidance):
        sampler = Sampler(shared, guidance=guidance, **sampling)
        return sampler.sample(seed, tf.range(tf.size(labels)), labels)

    def sample(seed, labels, guidance):
        with tf.control_dependencies([_check_labels(denoiser, labels)]):
            labels = tf.identity(labels)
        if denoiser.conditional:
            # The choice lies outside the loop over the steps, so that w = 1 never pays for two passes.
            without, guided = (lambda w=w: draw(seed, labels, w) for w in (1.0, guidance))
            x = tf.cond(tf.equal(guidance, 1.0), without, guided)
        else:
            message = "this model has no classes to guide with: guidance must be 1"
            with tf.control_dependencies([tf.debugging.assert_equal(guidance, 1.0, message)]):
                x = draw(seed, tf.identity(labels), 1.0)
        return {"images": _to_uint8(x)}

    def denoise(z, t, labels):
        last = len(denoiser.schedule) - 1
        within = tf.debugging.Assert(tf.reduce_all((t >= 0) & (t <= last)), [f"t must be 0 to {last}", t])
        with tf.control_dependencies([within, _check_labels(denoiser, labels)]):
            z, t, labels = map(tf.identity, (z, t, labels))
        x, u = shared(z, t, labels)
        return {"x": x, "log_variance": learned_log_variance(u, denoiser.schedule, t), "u": u}

    numbers = {name: tf.TensorSpec((None,), tf.int32, name) for name in ("t", "labels")}
    seed, guidance = tf.TensorSpec((), tf.int32, "seed"), tf.TensorSpec((), tf.float32, "guidance")
    z = tf.TensorSpec((None, *denoiser.image_shape), tf.float32, "z")
    module = tf.Module()
    # The variables alone: a Keras object here would bring its metadata, and need its class to load.
    module.weights = list(denoiser.variables)
    module.sample = tf.function(sample, input_signature=[seed, numbers["labels"], guidance])
    module.denoise = tf.function(denoise, input_signature=[z, numbers["t"], numbers["labels"]])
    return module


def _traced_once(denoiser: Denoiser | Experts) -> Denoiser | Experts:
    """The same denoiser, each network being one graph function that all signatures call: half the file."""
    shared = copy.copy(denoiser)
    if isinstance(denoiser, Experts):
        shared.experts = [_traced_once(expert) for expert in denoiser.experts]
    else:
        shared.network = tf.function(denoiser.network.__call__)
    return shared


def _check_labels(denoiser: Denoiser | Experts, labels: tf.Tensor) -> tf.Operation:
    """An error for labels that no class has; a GPU would quietly take zeros for their embedding."""
    if not denoiser.conditional:
        return tf.no_op()
    null = denoiser.num_classes
    known = tf.reduce_all((labels >= 0) & (labels <= null))
    return tf.debugging.Assert(known, [f"labels must be 0 to {null - 1}, or {null} for no class", labels])


def _to_uint8(x: tf.Tensor) -> tf.Tensor:
    """`pdm_tf.images.to_uint8` in the graph: the same rounding, so the same bytes."""
    return tf.cast(tf.clip_by_value(tf.round((x + 1.0) * 127.5), 0.0, 255.0), tf.uint8)


def check_free(out: str | os.PathLike) -> None:
    """Refuses to overwrite: `out` must not exist, or be an empty folder.

    Raises:
      UserError: there is something.
    """
    out = Path(out)
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists: delete it, or name another folder with --out")


def export_saved_model(
    denoiser: Denoiser | Experts,
    out: str | os.PathLike,
    sampling: dict[str, typing.Any],
    about: dict[str, typing.Any],
) -> None:
    """Writes the SavedModel, with how to call it in its README.md and in `METADATA`; whole or not at all.

    Args:
      denoiser, sampling: see `servable`.
      out: the folder to make.
      about: more for the metadata, JSON values; see `origin`.
    Raises:
      UserError: `out` exists, or cannot be written.
    """
    check_free(out)
    module = servable(denoiser, sampling)
    metadata = {**about, **describe(denoiser, sampling)}
    with atomic_folder(out) as partial:
        # With the gradients of its custom-gradient operations (+10% of the graph): without them every load
        # warns, and `denoise` could not be differentiated.
        tf.saved_model.save(
            module, str(partial), signatures={"sample": module.sample, "denoise": module.denoise}
        )
        (partial / METADATA).parent.mkdir()
        (partial / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
        (partial / "README.md").write_text(readme(metadata))


def describe(denoiser: Denoiser | Experts, sampling: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """What a caller needs to know of an export, as JSON values."""
    classes = denoiser.num_classes if denoiser.conditional else 0
    timesteps = Sampler(denoiser, **sampling).schedule.timesteps
    image, batch = list(denoiser.image_shape), ["batch"]
    return {
        "image_shape": image,
        "num_classes": classes,
        "null_label": classes or None,
        "num_timesteps": len(denoiser.schedule),
        "sampling": {**sampling, "steps": len(timesteps), "timesteps": timesteps.tolist()},
        "parameters": sum(v.shape.num_elements() for v in denoiser.variables),
        "tensorflow": tf.__version__,
        "signatures": {
            "sample": {
                "inputs": {
                    "seed": ["int32", []],
                    "labels": ["int32", batch],
                    "guidance": ["float32", []],
                },
                "outputs": {"images": ["uint8", batch + image]},
            },
            "denoise": {
                "inputs": {
                    "z": ["float32", batch + image],
                    "t": ["int32", batch],
                    "labels": ["int32", batch],
                },
                "outputs": {name: ["float32", batch + image] for name in ("x", "log_variance", "u")},
            },
        },
    }


def origin(runs: Sequence[tuple[str, Config]]) -> dict[str, typing.Any]:
    """Where the newest weights of `read_experts`' runs lie, and the classes' names, as JSON values.

    Raises:
      UserError: a run has no weights yet.
    """
    experts = [
        {
            "weights": str(newest_ema(run_dir)),
            "t_start": config.diffusion.t_start,
            "t_stop": config.diffusion.t_stop,
            "patch_size": config.network.patch_size,
            "prediction": config.diffusion.prediction,
        }
        for run_dir, config in runs
    ]
    return {"label_names": list(runs[0][1].data.label_names), "experts": experts}


README = """\
# A patched diffusion model, exported by pdm_tf

Images: {shape}, uint8. Classes: {classes}.
Sampling: {sampling}.
Made from: {source}.

It needs TensorFlow and nothing else (it was written by {tensorflow}):

```python
import tensorflow as tf

model = tf.saved_model.load("path/of/this/folder")
images = model.signatures["sample"](
    seed=tf.constant(0), labels=tf.constant({labels}), guidance=tf.constant({guidance})
)["images"]  # uint8 {batch_shape}
```

`sample`: the image at place i of a call is image i of its seed, so a call can be repeated exactly.
`guidance` is the weight w of classifier-free guidance; 1.0 is without, and costs half.
`denoise(z, t, labels)`: one network pass on float32 z_t, t from 0 (least noise) to {last_t}. It returns
`x`, the predicted clean image; `log_variance`, log sigma^2 of the step from t to t-1; and `u`, its place
between log beta (u = 0) and log b_tilde (u = 1).

All of this, for programs, is in `{metadata}`.
"""


def readme(metadata: dict[str, typing.Any]) -> str:
    """The text that lies beside saved_model.pb, with an example call that fits the model."""
    names, classes, null = metadata["label_names"], metadata["num_classes"], metadata["null_label"]
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names[:20]))
    listed = listed if 0 < len(names) <= 20 else f"0 to {classes - 1}"
    labels = [0, min(1, classes - 1)] if classes else [0, 0]
    steps = {key: value for key, value in metadata["sampling"].items() if key != "timesteps"}
    return README.format(
        shape=" x ".join(map(str, metadata["image_shape"])),
        classes=f"{listed}; {null} is no class" if classes else "none (labels only say how many images)",
        sampling=", ".join(f"{key} {value}" for key, value in steps.items()),
        source="; ".join(
            "{weights} (P = {patch_size}) for {t_start} <= t < {t_stop}".format(**run)
            for run in metadata["experts"]
        ),
        tensorflow=metadata["tensorflow"],
        labels=labels,
        guidance=1.5 if classes else 1.0,
        batch_shape=(2, *metadata["image_shape"]),
        last_t=metadata["num_timesteps"] - 1,
        metadata=METADATA,
    )
