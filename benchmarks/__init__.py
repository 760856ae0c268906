"""Speed and memory beside peers, measured in one run."""
