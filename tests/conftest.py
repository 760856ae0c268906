"""Settings of the whole suite."""

import os

# Tests run on the CPU of whatever machine they find, and quietly.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
