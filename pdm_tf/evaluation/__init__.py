"""How good images are: features of a named network, distances of sets, references to compare with."""
