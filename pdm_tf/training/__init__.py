"""Training: the Keras model, its loop, averages and checkpoints."""
