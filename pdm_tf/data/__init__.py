"""TFRecord data sets in TFDS layout -> batches of images in [-1, 1], labels, and places in the stream."""

# ruff: noqa: F401 (they are imported from here)
from pdm_tf.data.damage import naming_shards
from pdm_tf.data.info import DatasetInfo, describe_directory, find_dataset, held_out_split
from pdm_tf.data.pipeline import has_labels, labelled_batches, load_batches, split_in_order, stored_image
