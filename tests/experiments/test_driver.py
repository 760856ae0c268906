"""The driver: work is done once, and commands' ends are passed on."""

import os
import signal
import threading
import time

import pytest

from experiments import driver
from experiments.driver import Driver
from pdm_tf.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER_ERROR, run


def test_numbers_are_measured_once_for_each_key_and_again_where_a_measurement_was_killed(tmp_path):
    calls = []

    def measure(value):
        calls.append(value)
        if value is None:
            raise KeyboardInterrupt
        return {"value": value, "list": [1, 2]}

    with pytest.raises(KeyboardInterrupt):
        Driver(tmp_path).once({"seed": 0}, lambda: measure(None))
    for _ in range(2):
        work = Driver(tmp_path)
        assert work.once({"seed": 0}, lambda: measure(0.5)) == {"value": 0.5, "list": [1, 2]}
        assert work.once({"seed": 1}, lambda: measure(0.7))["value"] == 0.7
    assert calls == [None, 0.5, 0.7]
    file = tmp_path / "made"
    for _ in range(2):
        assert work.once({"seed": 1}, lambda: file.touch() or measure(0.9), file)["value"] == 0.9
    assert calls[3:] == [0.9]
    assert work.once({"seed": 2}, lambda: None) == {}


PROGRAM = """
import signal, sys, time, pathlib
if sys.argv[1].isdigit():
    sys.exit(int(sys.argv[1]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path("up").touch()
time.sleep(60)
"""


def test_a_command_s_end_is_the_program_s_and_signals_are_passed_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(driver, "ROOT", tmp_path)
    (tmp_path / "main.py").write_text(PROGRAM)
    for status, expected in ((0, EXIT_DONE), (2, EXIT_USER_ERROR), (75, EXIT_STOPPED), (1, EXIT_USER_ERROR)):
        assert run(lambda status=status: driver.main_py([str(status)])) == expected
    assert "main.py 2 ended with status 2" in capsys.readouterr().err

    def stop():
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    begin = time.monotonic()
    assert run(lambda: driver.main_py(["long"])) == EXIT_STOPPED
    assert time.monotonic() - begin < 30
