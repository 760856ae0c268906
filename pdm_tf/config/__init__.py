"""What a run is: fields, their words on a command line, and presets. Knows no TensorFlow."""
