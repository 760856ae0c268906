"""What a user may say: flags, presets and the config they make. Knows no TensorFlow."""
