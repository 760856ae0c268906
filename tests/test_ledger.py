"""A ledger: parts that come back, other work that stays apart, and what others left."""

import numpy as np
import pytest

from pdm_tf.errors import UserError
from pdm_tf.ledger import Ledger, note_others


def test_parts_come_back_to_the_same_work_alone(tmp_path, capsys):
    ledger, again, other = (Ledger(tmp_path, {"seed": seed}) for seed in (0, 0, 1))
    assert not list(tmp_path.iterdir()) and not ledger.names()
    ledger.write("a", {"x": np.arange(3), "y": np.ones((2, 2), np.float32)})
    ledger.write("b", {"x": np.zeros(1)})
    assert again.names() == {"a", "b"} and not other.names()
    np.testing.assert_array_equal(again.read("a")["x"], np.arange(3))
    with pytest.raises(UserError, match="does not exist"):
        other.read("a")
    note_others(tmp_path, [again])
    assert capsys.readouterr().out == ""
    note_others(tmp_path, [other])
    assert f"note: {ledger.folder} holds 2 finished parts of another" in capsys.readouterr().out
    again.remove()
    assert not list(tmp_path.iterdir())
