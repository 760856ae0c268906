"""Speed and memory, measured beside peers in one run."""

import pdm_tf  # noqa: F401 (before TensorFlow: it sets its environment)
