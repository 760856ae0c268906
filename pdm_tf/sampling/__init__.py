"""Samplers: plain functions from noise to images, given a denoiser."""
