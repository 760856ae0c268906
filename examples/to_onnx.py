"""Converts an export's `denoise` to ONNX: python examples/to_onnx.py exports/avatars64 avatars64.onnx

Inputs z float32 (B, H, W, C), t int32 (B,), labels int32 (B,); outputs x, log_variance and u, float32
(B, H, W, C), for one network: tf2onnx cannot convert the choice between experts or patch sizes. It needs what
requirements-serve.txt lists and nothing of this project.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as examples/serve.py

import tensorflow as tf
import tf2onnx


def patches_to_onnx(context, node, *_):
    """ExtractImagePatches of patches side by side as ONNX's SpaceToDepth, which orders values the same way.

    tf2onnx has a convolution with an identity kernel for it, and that works for a fixed batch size only.
    """
    size = node.get_attr_value("ksizes")[1]
    shapes, dtypes = node.output_shapes, node.output_dtypes
    context.remove_node(node.name)
    images = context.make_node("Transpose", node.input, attr={"perm": [0, 3, 1, 2]}).output
    if size > 1:
        images = context.make_node("SpaceToDepth", images, attr={"blocksize": size}).output
    context.make_node(
        "Transpose", images, {"perm": [0, 2, 3, 1]},
        name=node.name, outputs=node.output, shapes=shapes, dtypes=dtypes,
    )  # fmt: skip


def main():
    """Converts and says what it wrote."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("folder", help="an export")
    parser.add_argument("output", help="the .onnx file to write")
    arguments = parser.parse_args()
    if not os.path.isfile(os.path.join(arguments.folder, "saved_model.pb")):
        parser.error(f"{arguments.folder} holds no SavedModel: write one with python main.py --mode=export")
    with open(os.path.join(arguments.folder, "assets.extra", "pdm_tf.json")) as file:
        parts = len(json.load(file)["parts"])
    if parts > 1:
        # Convolutions in the branches of a condition keep TensorFlow's attributes, and no runtime loads them.
        parser.error(f"{arguments.folder} holds {parts} networks or patch sizes: ONNX is for one")
    model = tf.saved_model.load(arguments.folder)
    specs = model.signatures["denoise"].structured_input_signature[1]
    order = ("z", "t", "labels")
    tf2onnx.convert.from_function(
        tf.function(lambda z, t, labels: model.denoise(z, t, labels)),
        input_signature=[tf.TensorSpec(specs[name].shape, specs[name].dtype, name) for name in order],
        opset=17,
        custom_op_handlers={"ExtractImagePatches": (patches_to_onnx, [])},
        output_path=arguments.output,
    )
    print(f"ONNX model: {arguments.output}")


if __name__ == "__main__":
    main()
