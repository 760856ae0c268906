"""Patched Diffusion Models in TensorFlow 2 (Luhman & Luhman, 2022)."""
