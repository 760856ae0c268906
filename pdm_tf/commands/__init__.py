"""The program's modes: a file each, with its options and `run(options)`."""
