"""How good images are: features of a named network, distances between sets of them, references to compare with."""
