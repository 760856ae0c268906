"""Raw archives -> checked TFRecord data sets in TFDS layout, each tool a program of its own."""

import os

# These programs end with one clear line; TensorFlow's start-up notices would bury it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
