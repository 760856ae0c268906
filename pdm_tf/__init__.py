"""Patched Diffusion Models in TensorFlow 2 (Luhman & Luhman, 2022)."""

# First of all, so that whatever imports TensorFlow after any part of this package finds it set up.
from pdm_tf import stack as stack
