"""Speed, memory and quality, measured in one run each."""
