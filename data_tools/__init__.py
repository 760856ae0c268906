"""Raw archives -> checked TFRecord data sets in TFDS layout, each tool a program of its own."""

import pdm_tf  # noqa: F401 (before TensorFlow: it sets its environment)
