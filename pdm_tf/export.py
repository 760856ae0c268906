"""Exports without this project's code: a SavedModel of denoiser and sampler, or weights as .safetensors."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from pdm_tf.atomic import atomic_folder, atomic_text
from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import options_of
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.process import learned_log_variance
from pdm_tf.errors import UserError
from pdm_tf.models import Model, Run, origin_text, read_weights
from pdm_tf.paths import PATTERN, SYSTEM_FILES, as_path, entries
from pdm_tf.run import SAFETENSORS, RunFolder
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.weights import write_arrays

METADATA = "assets.extra/pdm_tf.json"  # assets.extra/ is the SavedModel's place for other files
WARM_UP = "assets.extra/tf_serving_warmup_requests"  # where TensorFlow Serving looks for them
SIGNATURES = ("sample", "sample_rows", "denoise")


# --- The graph -------------------------------------------------------------------------------------


class TracedOnce:
    """A denoiser as one graph function that all signatures call: half the file."""

    def __init__(self, denoiser: Denoiser):
        z = tf.TensorSpec((None, *denoiser.image_shape))
        numbers = tf.TensorSpec((None,), tf.int32)
        self._denoiser = denoiser
        self._call = tf.function(lambda z, t, labels: denoiser(z, t, labels), [z, numbers, numbers])

    def __call__(self, z, t, labels, dropout_key=None, augmentation=None):
        """As `Denoiser.__call__`, without dropout and augmentation."""
        return self._call(z, t, labels)

    def __getattr__(self, name):
        return getattr(self._denoiser, name)


class Inputs(NamedTuple):
    """What a call of an export may ask for."""

    num_labels: int  # number of labels, counted from 0; 0: the model sees none
    null_label: int | None  # the last of them, no class; None: the model has not learnt images of no class
    guidance: bool  # whether a weight other than 1 is allowed

    @classmethod
    def of(cls, denoiser: Denoiser, label_dropout: float, is_student: bool = False) -> Inputs:
        """Those of a denoiser that was trained with that dropout of labels."""
        if not denoiser.conditional:
            return cls(0, None, guidance=False)
        if not label_dropout:
            return cls(denoiser.num_classes, None, guidance=False)
        return cls(denoiser.num_classes + 1, denoiser.null_label, guidance=not is_student)


def servable(denoiser: Denoiser, sampling: SamplingConfig, inputs: Inputs) -> tf.Module:
    """The functions `sample`, `sample_rows` and `denoise` of a denoiser, ready for `tf.saved_model.save`.

    - sample(seed int32 (), labels int32 (B,), guidance float32 ()) -> {"images": uint8 (B, H, W, C)}. Image i
      has index i of the seed. At guidance 1 each step is one network pass on B images, else one on 2 B. Seed
      and guidance may be (B,), B times the same value, as a request of rows has them. The defaults are seed
      0, one image of no class (of class 0 if images of no class were not learnt), and the guidance of
      `sampling`.
    - sample_rows(seed int32 (B,), index int32 (B,), labels int32 (B,), guidance float32 (B,)) -> the same:
      row by row image `index` of its own seed, for servers that batch the requests of several clients. Each
      step is one network pass on the B images, and on those of w != 1 once more.
    - denoise(z float32 (B, H, W, C), t int32 (B,), labels int32 (B,)) -> float32 (B, H, W, C) each: "x",
      x_theta as the network predicts it, neither clipped nor guided; "log_variance", log sigma^2 of
      p(z_{t-1} | z_t) in the full process; "u", its position between log beta (u = 0) and log b_tilde (1).

    Without classes only the number of labels counts. Labels, t and guidance beyond their range (`inputs`),
    and an empty batch, raise `tf.errors.InvalidArgumentError`.
    """
    traced = TracedOnce(denoiser)
    default = default_inputs(inputs, sampling)
    last = len(denoiser.schedule) - 1
    module = tf.Module()
    # The variables alone: a Keras object here would bring its metadata, and need its class to load.
    module.weights = list(denoiser.variables)

    def sample(seed=default["seed"], labels=default["labels"], guidance=default["guidance"]):
        seed, guidance = _one_value("seed", seed), _one_value("guidance", guidance)
        count = tf.shape(labels)
        return module.sample_rows(tf.fill(count, seed), tf.range(count[0]), labels, tf.fill(count, guidance))

    def denoise(z, t, labels):
        within = ((t >= 0) & (t <= last), f"t must be 0 to {last}")
        z, t, labels = _checked((z, t, labels), [_some("z", z), within, *_labels_known(inputs, labels)])
        x, u = traced(z, t, labels)
        return {"x": x, "log_variance": learned_log_variance(u, denoiser.schedule.at(t)), "u": u}

    z = tf.TensorSpec((None, *denoiser.image_shape), tf.float32, "z")
    t, labels, seeds, index = (tf.TensorSpec((None,), tf.int32, n) for n in ("t", "labels", "seed", "index"))
    weights = tf.TensorSpec((None,), tf.float32, "guidance")
    seed, guidance = tf.TensorSpec(None, tf.int32, "seed"), tf.TensorSpec(None, tf.float32, "guidance")
    module.sample_rows = tf.function(_sample_rows(traced, sampling, inputs), [seeds, index, labels, weights])
    module.sample = tf.function(sample, [seed, labels, guidance])
    module.denoise = tf.function(denoise, [z, t, labels])
    return module


def _sample_rows(denoiser: Denoiser, sampling: SamplingConfig, inputs: Inputs) -> Callable:
    """The function `sample_rows`, which `sample` calls."""

    def sample_rows(seed, index, labels, guidance):
        rows = (seed, index, labels, guidance)
        sizes = tf.stack([tf.size(values) for values in rows])
        checks = [
            _some("labels", labels),
            (tf.equal(sizes, sizes[:1]), "each input must have one value for each image"),
            *_labels_known(inputs, labels),
        ]
        if inputs.guidance:
            checks.append((tf.math.is_finite(guidance), "guidance must be a finite number"))
        else:
            message = "this model cannot be guided: guidance must be 1"
            checks.append((tf.equal(guidance, 1.0), message))
        seed, index, labels, guidance = _checked(rows, checks)
        weight = {"guidance": guidance} if inputs.guidance else {}
        sampler = Sampler(denoiser, dataclasses.replace(sampling, guidance=1.0), **weight)
        # As `pdm_tf.images.to_uint8` rounds, and so the same bytes.
        levels = tf.round((sampler.sample(seed, index, labels) + 1.0) * 127.5)
        return {"images": tf.cast(tf.clip_by_value(levels, 0.0, 255.0), tf.uint8)}

    return sample_rows


def default_inputs(inputs: Inputs, sampling: SamplingConfig) -> dict[str, tf.Tensor]:
    """The values of the inputs of `sample` that a call leaves out."""
    return {
        "seed": tf.constant(0),
        "labels": tf.constant([inputs.null_label or 0]),
        "guidance": tf.constant(sampling.guidance if inputs.guidance else 1.0),
    }


Check = tuple[tf.Tensor, str]  # bool, of any shape; and what an error says where it does not hold


def _checked(tensors: Sequence[tf.Tensor], checks: Sequence[Check]) -> list[tf.Tensor]:
    """The tensors, if all checks hold."""
    asserts = [tf.debugging.Assert(tf.reduce_all(holds), [message]) for holds, message in checks]
    with tf.control_dependencies(asserts):
        return [tf.identity(tensor) for tensor in tensors]


def _some(name: str, batch: tf.Tensor) -> Check:
    """Not an empty batch, which TensorFlow's convolutions cannot do with oneDNN."""
    return tf.shape(batch)[0] > 0, f"{name} is empty: ask for at least one image"


def _labels_known(inputs: Inputs, labels: tf.Tensor) -> list[Check]:
    """Only labels that were learnt; a GPU would quietly take zeros for another's embedding."""
    if not inputs.num_labels:
        return []
    message = f"labels must be 0 to {inputs.num_labels - 1}"
    if inputs.null_label is not None:
        message += f", of which {inputs.null_label} is no class"
    return [((labels >= 0) & (labels < inputs.num_labels), message)]


def _one_value(name: str, values: tf.Tensor) -> tf.Tensor:
    """The value, (), of a tensor that holds it once or, as the rows of a request do, several times."""
    values = tf.reshape(values, [-1])
    alike = (tf.size(values) > 0) & tf.reduce_all(tf.equal(values, values[:1]))
    message = f"{name} must be one number, the same in all rows: send a request for each, or use sample_rows"
    return _checked([values], [(alike, message)])[0][0]


# --- The SavedModel --------------------------------------------------------------------------------


@contextlib.contextmanager
def _free_folder(out: str | os.PathLike, last: str) -> Iterator[Path]:
    """As `atomic_folder`; UserError if `out` holds more than `SYSTEM_FILES`, or TensorFlow cannot load it."""
    out = as_path(out)
    odd = PATTERN.search(str(out))
    if odd:
        raise UserError(
            f"{out}: TensorFlow takes {odd[0]} in the path of a SavedModel for a pattern, and could not load "
            "it: name a folder without [ ] * ? \\"
        )
    names = {entry.name for entry in entries(out)} if out.is_dir() else {"a file"}
    if os.path.islink(out) or (out.exists() and names - SYSTEM_FILES):
        raise UserError(f"{out} exists: delete it, or name another folder")
    with atomic_folder(out, last) as partial:
        yield partial
        for entry in entries(out):
            entry.unlink()


def export_saved_model(model: Model, out: str | os.PathLike) -> None:
    """Writes the SavedModel, README.md and `METADATA`, all or nothing; the config says how to sample."""
    config = model.config
    with _free_folder(out, last="saved_model.pb") as partial:
        inputs = Inputs.of(model.denoiser, config.diffusion.label_dropout, config.is_student)
        module = servable(model.denoiser, config.sampling, inputs)
        metadata = describe(model, module, inputs)
        # With the gradients of its custom-gradient operations (+10% of the graph): without them every load
        # warns, and `denoise` could not be differentiated.
        signatures = {name: getattr(module, name) for name in SIGNATURES}
        signatures["serving_default"] = module.sample
        tf.saved_model.save(module, str(partial), signatures=signatures)
        (partial / METADATA).parent.mkdir()
        write_warm_up(model.denoiser, inputs, partial / WARM_UP, as_path(out).name)
        (partial / METADATA).write_text(json.dumps(metadata, indent=2) + "\n")
        atomic_text(partial / "README.md", readme(metadata))


def write_warm_up(denoiser: Denoiser, inputs: Inputs, path: Path, name: str) -> None:
    """Writes warm-up requests for a model of that name, before which a server answers no others.

    One for each way of sampling and one to denoise, as a TFRecord file of tensorflow.serving.PredictionLog.
    """
    one = {"labels": tf.constant([0])}
    image = tf.zeros((1, *denoiser.image_shape))
    requests = [("denoise", {**one, "z": image, "t": tf.constant([0])})]
    weights = (1.0, 1.5) if inputs.guidance else (1.0,)
    for guidance in weights:
        values = {**one, "seed": tf.constant(0), "guidance": tf.constant(guidance)}
        requests.append(("serving_default", values))
    zeros = tf.zeros(len(weights), tf.int32)
    rows = {"seed": zeros, "index": zeros, "labels": zeros, "guidance": tf.constant(weights)}
    requests.append(("sample_rows", rows))
    with tf.io.TFRecordWriter(str(path)) as file:
        for signature, values in requests:
            file.write(prediction_log(name, signature, values))


def prediction_log(name: str, signature: str, inputs: Mapping[str, tf.Tensor]) -> bytes:
    """A request as a serialized tensorflow.serving.PredictionLog, which TensorFlow itself does not have.

    Field numbers are those of TensorFlow Serving's prediction_log.proto, predict.proto and model.proto.
    """
    model_spec = _field(1, name.encode("utf-8", "replace")) + _field(3, signature.encode())
    request = _field(1, model_spec)
    for key, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(2, _field(1, key.encode()) + _field(2, tensor))
    return _field(6, _field(1, request))  # predict_log.request


def _field(number: int, content: bytes) -> bytes:
    """A string or message as a field of a protocol buffer: number, length, content."""
    length, size = b"", len(content)
    while size >= 128:
        length += bytes([size % 128 + 128])
        size //= 128
    return bytes([number * 8 + 2]) + length + bytes([size]) + content


def describe(model: Model, module: tf.Module, inputs: Inputs) -> dict[str, Any]:
    """The metadata of an export for its callers, JSON values; `module` is `servable`'s."""
    denoiser = model.denoiser
    sampling = model.config.sampling
    timesteps = Sampler(denoiser, sampling).schedule.timesteps
    signatures = {name: _signature(getattr(module, name)) for name in SIGNATURES}
    default = default_inputs(inputs, sampling)
    signatures["sample"]["defaults"] = {name: value.numpy().tolist() for name, value in default.items()}
    return {
        "label_names": list(model.config.data.label_names),
        "weights": model.origin,
        "digest": model.digest,
        "parts": [[part.t_start, part.t_stop, part.patch_size] for part in denoiser.parts],
        "image_shape": list(denoiser.image_shape),
        "num_classes": denoiser.num_classes if inputs.num_labels else 0,
        "null_label": inputs.null_label,
        "takes_guidance": inputs.guidance,
        "num_timesteps": len(denoiser.schedule),
        "sampling": {**dataclasses.asdict(sampling), "timesteps": timesteps.tolist()},
        "parameters": sum(v.shape.num_elements() for v in denoiser.variables),
        "tensorflow": tf.__version__,
        "signatures": signatures,
    }


def _signature(function: Callable) -> dict[str, Any]:
    """[dtype, shape] of the inputs and outputs of a `tf.function`; "batch" is any size, one value is ()."""

    def described(spec: tf.TensorSpec) -> list:
        sizes = spec.shape.as_list() if spec.shape.rank else []
        return [spec.dtype.name, ["batch" if size is None else size for size in sizes]]

    traced = function.get_concrete_function()
    return {
        "inputs": {spec.name: described(spec) for spec in traced.structured_input_signature[0]},
        "outputs": {name: described(spec) for name, spec in traced.structured_outputs.items()},
    }


README = """\
# A patched diffusion model, exported by pdm_tf

Images: {shape}, uint8. Classes: {classes}.
Sampling: {sampling}.
Made from: {source}.

It needs TensorFlow ({tensorflow}) and nothing else. `TF_ENABLE_ONEDNN_OPTS=1` is faster on many CPUs.

```python
import tensorflow as tf

model = tf.saved_model.load("path/of/this/folder")
images = model.signatures["sample"](
    seed=tf.constant(0), labels=tf.constant({labels}), guidance=tf.constant({guidance})
)["images"]  # uint8 {batch_shape}
```

`sample`, which is `serving_default` too: the image at place i of a call is image i of its seed. A server
takes {defaults} for what a request leaves out.
`guidance` {guidance_is}.
`sample_rows(seed, index, labels, guidance)`, each of one value an image, draws image `index` of each seed.
`denoise(z, t, labels)`: one network pass on float32 z_t, t from 0 (least noise) to {last_t}. It returns
`x`, the predicted clean image; `log_variance`, log sigma^2 of the step from t to t-1; and `u`, its place
between log beta (u = 0) and log b_tilde (u = 1).

All of this, for programs, is in `{metadata}`.
"""


def readme(metadata: dict[str, Any]) -> str:
    """The README.md of an export, with an example call that fits the model."""
    names, classes, null = metadata["label_names"], metadata["num_classes"], metadata["null_label"]
    listed = ", ".join(f"{number} {name}" for number, name in enumerate(names[:20]))
    if not 0 < len(names) <= 20:
        listed = f"0 to {classes - 1}" if classes else "none (labels only say how many images)"
    if null is not None:
        listed += f"; {null} is no class"
    sampling = SamplingConfig(**{k: v for k, v in metadata["sampling"].items() if k != "timesteps"})
    steps = " + ".join(map(str, sampling.steps))
    options = "".join(f", {k} {v}" for k, v in options_of(sampling, sampling.sampler).items())
    return README.format(
        shape=" x ".join(map(str, metadata["image_shape"])),
        classes=listed,
        sampling=f"{sampling.sampler}{options}, {steps} steps, {sampling.spacing}",
        source="; ".join(map(origin_text, metadata["weights"])),
        tensorflow=metadata["tensorflow"],
        defaults=", ".join(f"{k} {v}" for k, v in metadata["signatures"]["sample"]["defaults"].items()),
        labels=[0, min(1, classes - 1)] if classes else [0, 0],
        guidance=sampling.guidance,
        guidance_is="is the weight w of classifier-free guidance; 1.0 is without, and costs half"
        if metadata["takes_guidance"]
        else "must be 1.0",
        batch_shape=(2, *metadata["image_shape"]),
        last_t=metadata["num_timesteps"] - 1,
        metadata=METADATA,
    )


# --- Weights alone ---------------------------------------------------------------------------------


def export_weights(run: Run, ema_length: float | None, out: str | os.PathLike) -> Path:
    """Writes a run folder of config.json, a README.md and averaged weights as .safetensors, bit for bit.

    For other frameworks, and for all modes that take a run's folder here. Returns the file of the weights.
    """
    with _free_folder(out, last="config.json") as partial:
        arrays, origin = read_weights(run, ema_length)
        folder = RunFolder(partial)
        file = folder.weights(origin["step"], SAFETENSORS)
        file.parent.mkdir()
        write_arrays(file, arrays)
        rows = [f"| `{name}` | {' x '.join(map(str, a.shape))} | {a.dtype} |" for name, a in arrays.items()]
        text = WEIGHTS_README.format(
            source=origin_text(origin),
            file=file.relative_to(folder.path),
            table="\n".join(["| name | shape | type |", "|---|---|---|", *rows]),
            total=sum(array.size for array in arrays.values()),
        )
        atomic_text(partial / "README.md", text)  # whose names may be of any letters
        folder.write_config(run.config)
    return RunFolder(out).weights(origin["step"], SAFETENSORS)


WEIGHTS_README = """\
# Weights of a patched diffusion model, exported by pdm_tf

Made from: {source}. They lie in `{file}`, {total:,} numbers in all:

```python
from safetensors.numpy import load_file

weights = load_file("path/of/this/folder/{file}")  # name -> array
```

Kernels of convolutions are (height, width, inputs, outputs), those of dense layers (inputs, outputs).
PyTorch's are `kernel.transpose(3, 2, 0, 1)` and `kernel.transpose(1, 0)`; Flax has these layouts.
`config.json` says all that the network is built from; this folder is a run for pdm_tf's `run_dir` and
`warm_start`.

{table}
"""
