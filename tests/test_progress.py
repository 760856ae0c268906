"""The peak of resident memory."""

import subprocess
import sys

import pytest

from pdm_tf.progress import peak_resident


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's own peak is taken")
def test_the_peak_is_not_that_of_the_process_that_made_this_one():
    held, peak = 2**30, "from pdm_tf.progress import peak_resident; print(peak_resident())"
    run = f"subprocess.run([sys.executable, '-c', {peak!r}], check=True)"
    parent = f"import subprocess, sys; held = b'1' * {held}; {run}"
    done = subprocess.run([sys.executable, "-c", parent], check=True, capture_output=True, text=True)
    assert 50 < float(done.stdout) < held / 2**20
    assert peak_resident() > 50
