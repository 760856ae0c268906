"""The tests; each of their programs finds TensorFlow set up as the project's own do."""

import pdm_tf  # noqa: F401 (before TensorFlow: it sets its environment)
