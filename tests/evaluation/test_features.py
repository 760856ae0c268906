"""Detectors: Inception's protocol on a graph of random weights, the embedded network, and models by path."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.data import find_dataset, labelled_batches
from pdm_tf.errors import UserError
from pdm_tf.evaluation import efficientnet
from pdm_tf.evaluation.features import INCEPTION, extract, load_detector
from pdm_tf.stack import keras
from pdm_tf.weights import read_arrays
from tests.evaluation.inception_graph import expected, write_graph

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 40, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / INCEPTION
    write_graph(path)
    return path


@pytest.fixture(scope="module")
def embedded():
    return load_detector()


# --- Inception -----------------------------------------------------------------------------------


def test_inception_s_features_are_adm_s_at_any_size(inception_file):
    detector = load_detector("inception", inception_file)
    found = detector(IMAGES)
    pooled, spatial, probabilities = expected(IMAGES)
    assert found.spatial.shape == (5, 17 * 17 * 7) and found.pooled.shape == (5, 12)
    np.testing.assert_allclose(found.pooled, pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.spatial, spatial, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.probabilities, probabilities, rtol=1e-4, atol=1e-5)
    assert {array.dtype for array in found} == {np.dtype(np.float32)}
    larger = np.random.default_rng(1).integers(0, 256, (3, 299, 299, 3), np.uint8)
    np.testing.assert_allclose(detector(larger).pooled, expected(larger)[0], rtol=1e-4, atol=1e-5)
    assert detector.labels == {"frechet": "FID", "spatial": "sFID", "inception_score": "IS", "kernel": "KID"}
    assert detector.sha256 == hashlib.sha256(inception_file.read_bytes()).hexdigest()


def test_a_missing_damaged_or_other_graph_is_refused(inception_file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        UserError, match=r"\.cache/pdm_tf/classify_image_graph_def.pb does not exist"
    ) as caught:
        load_detector("inception")
    assert "about 100 MB" in str(caught.value) and "https://openaipublic.blob" in str(caught.value)
    (tmp_path / ".cache" / "pdm_tf").mkdir(parents=True)
    (tmp_path / ".cache" / "pdm_tf" / INCEPTION).write_bytes(inception_file.read_bytes())
    assert load_detector("inception").name == "inception"
    (tmp_path / "cut.pb").write_bytes(inception_file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.pb is no whole classify_image"):
        load_detector("inception", tmp_path / "cut.pb")
    other = tf.compat.v1.GraphDef.FromString(inception_file.read_bytes())
    del other.node[[node.name for node in other.node].index("softmax/logits/MatMul") :]
    (tmp_path / "other.pb").write_bytes(other.SerializeToString())
    with pytest.raises(UserError, match=r"other\.pb is no whole classify_image"):
        load_detector("inception", tmp_path / "other.pb")


# --- extraction ----------------------------------------------------------------------------------


def test_images_may_come_in_any_batches_or_grey_and_the_network_is_traced_once(embedded):
    network = efficientnet.network()
    detector = dataclasses.replace(embedded, network=network, batch_size=2)
    grey = IMAGES[..., :1]
    done = []
    features = extract(detector, [grey[:1], grey[1:1], grey[1:]], done.append)
    np.testing.assert_array_equal(features.pooled, extract(detector, [np.tile(grey, 3)]).pooled)
    assert done == [2, 2, 1] and network.experimental_get_tracing_count() == 1
    with pytest.raises(UserError, match="these have 4: make them RGB, transparent parts on white"):
        extract(detector, [np.zeros((2, 8, 8, 4), np.uint8)])
    with pytest.raises(UserError, match="no images to evaluate"):
        extract(detector, [])


# --- the embedded network ------------------------------------------------------------------------


def keras_network() -> keras.Model:
    """EfficientNet-Lite0 in Keras layers, its batch normalisations apart, as its authors describe it."""
    arrays, layers = read_arrays(efficientnet.WEIGHTS), keras.layers

    def convolve(x, name, stride=1, activate=True):
        kernel = arrays[f"{name}/kernel"].astype(np.float32)
        if name.endswith("depthwise"):
            layer = layers.DepthwiseConv2D(kernel.shape[:2], stride, "same", use_bias=False)
        else:
            layer = layers.Conv2D(kernel.shape[3], kernel.shape[:2], stride, "same", use_bias=False)
        x = layer(x)
        layer.set_weights([kernel])
        norm = layers.BatchNormalization(epsilon=1e-3)
        x = norm(x, training=False)
        norm.set_weights(list(arrays[f"{name}/norm"]))
        return layers.ReLU(6.0)(x) if activate else x

    image = layers.Input((224, 224, 3))
    x = convolve(image, "stem", 2)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for number, stride in enumerate(strides):
        before, name = x, f"block_{number}"
        if number:
            x = convolve(x, f"{name}/expand")
        x = convolve(x, f"{name}/depthwise", stride)
        x = convolve(x, f"{name}/project", activate=False)
        if x.shape == before.shape:
            x = layers.Add()([x, before])
    return keras.Model(image, layers.GlobalAveragePooling2D()(x))


def test_the_embedded_network_is_that_of_keras_layers(embedded):
    network = keras_network()
    images, _ = next(labelled_batches(find_dataset("emoji64", "data"), "validation", 4))
    x = tf.image.resize(tf.cast(images, tf.float32), (224, 224), antialias=True)
    pooled = embedded(images).pooled
    np.testing.assert_allclose(pooled, network((x - 127) / 128).numpy(), rtol=1e-3, atol=1e-4)
    assert pooled.shape == (4, 320) and pooled.std(axis=0).min() > 0
    titles = [embedded.title(metric) for metric in ("frechet", "kernel")]
    assert titles == ["FD-efficientnet_lite0", "KD-efficientnet_lite0"]
    assert "antialiased" in embedded.resize


# --- models by path ------------------------------------------------------------------------------


def small_model(side: int | None, pooled: bool) -> keras.Model:
    x = image = keras.layers.Input((side, side, 3))
    x = keras.layers.Rescaling(1 / 255)(x)
    x = keras.layers.Conv2D(4, 3, 2)(x)
    return keras.Model(image, keras.layers.GlobalAveragePooling2D()(x) if pooled else x)


@pytest.mark.parametrize("kind, pooled", [("model.keras", True), ("model.h5", False), ("folder", False)])
def test_any_model_is_a_detector(tmp_path, kind, pooled):
    model = small_model(16, pooled)
    path = tmp_path / kind
    model.save(path)
    detector = load_detector(str(path))
    resized = tf.image.resize(tf.cast(IMAGES, tf.float32), (16, 16), antialias=True)
    output = model(resized).numpy()
    output = output if pooled else output.mean(axis=(1, 2))
    np.testing.assert_allclose(extract(detector, [IMAGES]).pooled, output, rtol=1e-4, atol=1e-6)
    titles = [detector.title(metric) for metric in ("frechet", "kernel", "recall")]
    assert titles == [f"FD-{path.stem}", f"KD-{path.stem}", "recall"]
    assert detector.resize == "16x16 bilinear, antialiased"
    assert load_detector(str(path)).sha256 == detector.sha256 and len(detector.sha256) == 64


def test_models_that_are_no_detectors_are_refused(tmp_path):
    vector = keras.Sequential([keras.layers.Input((7,)), keras.layers.Dense(2)])
    vector.save(tmp_path / "vector.keras")
    with pytest.raises(UserError, match="a detector takes RGB images"):
        load_detector(str(tmp_path / "vector.keras"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be loaded as a Keras model"):
        load_detector(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="no detector 'inceptoin': write efficientnet_lite0, inception"):
        load_detector("inceptoin")
