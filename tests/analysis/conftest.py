"""One small data set for all analyses."""

import pytest

from tests.analysis.studies import small_data


@pytest.fixture(scope="package")
def info(tmp_path_factory):
    return small_data(tmp_path_factory.mktemp("analysis") / "data")
