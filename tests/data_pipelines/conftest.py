import pytest
import raw_folders as raw
from built_datasets import prepare


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("csv")
    raw.csv_folder(root / "raw", 40)
    return prepare(root / "raw", root)
