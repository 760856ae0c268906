"""Detectors: networks that turn images into features, whose distances say how alike two sets of images are.

A distance carries its detector's name. FID, sFID, IS and KID are names of the 2015 Inception graph alone,
which a user must have fetched; the embedded EfficientNet-Lite0 needs no download.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from pdm_tf.atomic import sha256
from pdm_tf.config.words import require
from pdm_tf.errors import UserError, one_line
from pdm_tf.evaluation import efficientnet
from pdm_tf.paths import local_path
from pdm_tf.stack import keras

INCEPTION = "classify_image_graph_def.pb"
INCEPTION_URL = f"https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/{INCEPTION}"
CACHE = Path("~/.cache/pdm_tf")
CROPS = 4  # squares of an image, where it is looked at in squares


class Features(NamedTuple):
    """A detector's answer for N images, float32: pooled (N, D), spatial (N, S), probabilities (N, K).

    None where a detector has no spatial features or no classes.
    """

    pooled: np.ndarray
    spatial: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        """The features of all images of several sets."""
        return cls(*(None if column[0] is None else np.concatenate(column) for column in zip(*parts)))


@dataclass(frozen=True)
class Detector:
    """A network that gives features. Calling it maps uint8 images (B, H, W, 3) to `Features`.

    Attributes:
      name, sha256: of the network, and of the file of its graph or weights.
      resize: how images are brought to its size, in words.
      labels: names of metrics -> titles, such as "FID"; a distance without one is FD-NAME or KD-NAME.
      network: uint8 (B, H, W, 3) -> (pooled, spatial or None, probabilities or None), arrays or tensors.
      batch_size: B that `extract` calls it with.
      rows: features of each image, one after another.
    """

    name: str
    sha256: str
    resize: str
    labels: Mapping[str, str]
    network: Callable[[np.ndarray], tuple[np.ndarray | tf.Tensor | None, ...]]
    batch_size: int = 32
    rows: int = 1

    def __call__(self, images: np.ndarray) -> Features:
        return Features(*(None if part is None else np.asarray(part) for part in self.network(images)))

    def title(self, metric: str) -> str:
        """A metric's title in tables and JSON."""
        by_network = {"frechet": f"FD-{self.name}", "kernel": f"KD-{self.name}"}
        return {**by_network, **self.labels}.get(metric, metric)


def extract(
    detector: Detector, batches: Iterable[np.ndarray], progress: Callable[[int], object] = lambda count: None
) -> Features:
    """The features of all images, in order, in memory: 4 bytes a number.

    Args:
      batches: uint8 (B, H, W, C) of any B and one size of image; grey ones (C = 1) get three equal channels.
      progress: called with the number of images done since the last call.
    Raises:
      UserError: there are no images, or theirs are no 1 or 3 channels.
    """
    parts = []
    for features in extract_batches(detector, batches):
        parts.append(features)
        progress(len(features.pooled) // detector.rows)
    if not parts:
        raise UserError("there are no images to evaluate: name a file, folder or split that holds some")
    return Features.joined(parts)


def extract_batches(detector: Detector, batches: Iterable[np.ndarray]) -> Iterator[Features]:
    """As `extract`, one batch in memory: yields features of `detector.batch_size` images, the last fewer.

    The network always sees whole batches, so that it is traced once; what fills the last is cut off again.
    """
    for images in _regrouped(batches, detector.batch_size):
        count = len(images)
        padding = [(0, detector.batch_size - count), (0, 0), (0, 0), (0, 0)]
        features = detector(np.pad(three_channels(images), padding))
        rows = count * detector.rows
        yield Features(*(None if part is None else part[:rows] for part in features))


def three_channels(images: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 1 or 3) -> (B, H, W, 3); UserError of other channels: transparency has no colour."""
    channels = images.shape[-1]
    if channels not in (1, 3):
        raise UserError(
            f"detectors look at images of 1 or 3 channels, and these have {channels}:"
            " make them RGB, transparent parts on white, first"
        )
    return np.repeat(images, 3, axis=-1) if channels == 1 else images


def _regrouped(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same images in batches of `size`, the last fewer."""
    kept = None
    for batch in batches:
        kept = batch if kept is None else np.concatenate([kept, batch])
        while len(kept) >= size:
            yield kept[:size]
            kept = kept[size:]
    if kept is not None and len(kept):
        yield kept


# --- detectors by name ---------------------------------------------------------------------------


def load_detector(
    name_or_path: str = "efficientnet_lite0", inception_path: str | os.PathLike | None = None
) -> Detector:
    """The detector efficientnet_lite0 or inception, or any Keras model or SavedModel by its path.

    Args:
      inception_path: the file of Inception's graph, if not in the cache folder.
    Raises:
      UserError: no such name or path, or no detector at the path.
    """
    if name_or_path == "inception":
        return _inception(inception_path)
    require(inception_path is None, "inception does nothing without detector=inception: give both or none")
    if name_or_path == "efficientnet_lite0":
        return Detector(
            name=name_or_path,
            sha256=sha256(efficientnet.WEIGHTS),
            resize=efficientnet.RESIZE,
            labels={},
            network=efficientnet.network(),
        )
    path = local_path(name_or_path)
    if not path.exists():
        raise UserError(
            f"there is no detector {name_or_path!r}: write efficientnet_lite0, inception, or the path of a "
            "Keras model or SavedModel"
        )
    return _model(path)


def _inception(path: str | os.PathLike | None) -> Detector:
    """The 2015 Inception v3 as ADM's evaluator uses it: `pool_3`, D = 2048; `mixed_6/conv`, S = 2023.

    The probabilities for IS are softmax(pool_3 @ the weights of the last layer), without its bias.
    """
    file = local_path(path) if path else CACHE.expanduser() / INCEPTION
    if not file.is_file():
        raise UserError(
            f"{file} does not exist: fetch {INCEPTION} (about 100 MB) from {INCEPTION_URL}"
            " and put it there, or use the detector efficientnet_lite0, which needs no download"
        )
    try:
        network = _inception_network(file)
    except (DecodeError, KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{file} is no whole {INCEPTION} ({one_line(error)}): fetch it again from {INCEPTION_URL}"
        ) from error
    return Detector(
        name="inception",
        sha256=sha256(file),
        resize="299x299 by the graph's own TF1 bilinear (no half-pixel centres, no antialias)",
        labels={"frechet": "FID", "spatial": "sFID", "inception_score": "IS", "kernel": "KID"},
        network=network,
        batch_size=64,
    )


# --- crops ---------------------------------------------------------------------------------------


def of_crops(detector: Detector, side: int) -> Detector:
    """A detector that looks at `CROPS` random squares of an image, not at it (patch FID, Chai et al., 2022).

    So large images are compared at full resolution. Where their squares lie, the images' own pixels decide.
    """

    def network(images: np.ndarray) -> Features:
        squares = np.concatenate([_squares(image, side) for image in images])
        parts = [detector(squares[i : i + len(images)]) for i in range(0, len(squares), len(images))]
        return Features.joined(parts)

    return dataclasses.replace(
        detector,
        name=f"{detector.name}-crops{side}",
        resize=f"{CROPS} random squares of {side} pixels an image; {detector.resize}",
        labels={metric: f"{title}-crops{side}" for metric, title in detector.labels.items()},
        network=network,
        rows=CROPS,
    )


def _squares(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, C) -> (CROPS, side, side, C)."""
    most = np.array(image.shape[:2]) - side
    if min(most) < 0:
        height, width = image.shape[:2]
        raise UserError(f"crops of {side} pixels do not fit into images of {height} x {width}")
    generator = np.random.default_rng(zlib.crc32(np.ascontiguousarray(image)))
    corners = generator.integers(0, most + 1, size=(CROPS, 2))
    return np.stack([image[top : top + side, left : left + side] for top, left in corners])


# --- Inception -----------------------------------------------------------------------------------


def _inception_network(file: Path) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """The graph in a file -> a function of uint8 images that gives pooled, spatial and probabilities.

    It runs in a session: the operations of 2015 (BatchNormWithGlobalNormalization) work in a graph of their
    version, and in no tf.function.
    """
    definition = tf.compat.v1.GraphDef.FromString(file.read_bytes())
    for node in definition.node:
        node.attr.pop("_output_shapes", None)  # they say that a batch is one image
    inputs = {node.name: node.input for node in definition.node}
    with tf.Graph().as_default() as graph:
        images = tf.compat.v1.placeholder(tf.float32, (None, None, None, 3))
        weights = inputs["softmax/logits/MatMul"][1]
        pooled, mixed, matrix = tf.graph_util.import_graph_def(
            definition,
            input_map={"ExpandDims:0": images},
            return_elements=["pool_3:0", "mixed_6/conv:0", weights if ":" in weights else f"{weights}:0"],
        )
        pooled = tf.reshape(pooled, [-1, matrix.shape[0]])
        # The first 7 channels, channels last: (17, 17, 7) -> 2023.
        spatial = tf.reshape(mixed[..., :7], [tf.shape(mixed)[0], -1])
        outputs = pooled, spatial, tf.nn.softmax(pooled @ matrix)
    run = tf.compat.v1.Session(graph=graph).make_callable(outputs, [images])
    return lambda batch: run(batch.astype(np.float32))


# --- any other model -----------------------------------------------------------------------------


def _model(path: Path) -> Detector:
    """A Keras model (.keras, .h5) or a SavedModel with one image input as detector.

    It is given float32 RGB images (B, H, W, 3) in 0..255 and must hold its own scaling, as those of
    keras.applications with `include_preprocessing` do. Where its input has a size, images are resized to it
    (bilinear, antialiased). Its first output counts: (B, D), or (B, h, w, D), which is averaged over
    positions.
    """
    call, shape = _loaded(path)
    if len(shape) != 4 or shape[3] != 3:
        raise UserError(f"the input of {path} is {shape}: a detector takes RGB images, (None, H, W, 3)")
    size = None if None in shape[1:3] else shape[1:3]

    @tf.function
    def network(images: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        images = tf.cast(images, tf.float32)
        if size:
            images = tf.image.resize(images, size, antialias=True)
        output = tf.cast(call(images), tf.float32)
        if len(output.shape) == 4:
            output = tf.reduce_mean(output, axis=[1, 2])
        if len(output.shape) != 2:
            raise UserError(f"the output of {path} is {output.shape}: a detector's is (B, D) or (B, h, w, D)")
        return output, None, None

    return Detector(
        name=path.stem,
        sha256=_digest(path),
        resize=f"{size[0]}x{size[1]} bilinear, antialiased" if size else "none",
        labels={},
        network=network,
    )


def _loaded(path: Path) -> tuple[Callable[[tf.Tensor], tf.Tensor], tuple[int | None, ...]]:
    """A function from float32 images to a model's first output, and the shape of its input."""
    try:
        if path.is_dir():
            return _saved_model(path)
        model = keras.models.load_model(path, compile=False)
        return lambda images: tf.nest.flatten(model(images, training=False))[0], tuple(model.input_shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(
            f"{path} cannot be loaded as a Keras model or SavedModel ({one_line(error)})"
        ) from error


def _saved_model(path: Path) -> tuple[Callable[[tf.Tensor], tf.Tensor], tuple[int | None, ...]]:
    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    output = sorted(signature.structured_outputs)[0]
    if len(inputs) != 1:
        raise ValueError(f"it has {len(inputs)} inputs")
    ((name, spec),) = inputs.items()

    def call(images: tf.Tensor) -> tf.Tensor:
        return signature(**{name: tf.cast(images, spec.dtype)})[output]

    # The signature alone does not keep its variables.
    call.loaded = loaded
    return call, tuple(spec.shape)


def _digest(path: Path) -> str:
    """SHA-256 of a file; of a folder that of the names and hashes of its files."""
    if path.is_file():
        return sha256(path)
    files = sorted(entry for entry in path.rglob("*") if entry.is_file())
    lines = [f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
