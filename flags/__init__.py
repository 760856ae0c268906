"""The command line: frozen dataclasses of options <-> absl flags."""
