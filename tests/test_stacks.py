"""The two stacks beside each other: what one makes, the other uses, with the same numbers."""

import os
import sys

import pytest

from tests.stacks import compare

OTHER = os.environ.get("PDM_TF_OTHER_PYTHON")


@pytest.mark.heavy
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not OTHER, reason="PDM_TF_OTHER_PYTHON names no interpreter of the other stack")
def test_stacks_agree_and_read_what_the_other_wrote(tmp_path):
    found = list(compare([sys.executable, OTHER], tmp_path))
    assert len(found) == 10
    assert not [what for what, value, limit in found if not value <= limit]
