import pytest
from mimic_annotations import simulated


@pytest.fixture(scope="session")
def hospital(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("hospital") / "raw")
