import pytest
import toy_bundle

from covidnet.export.bundle import Bundle


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A written bundle; tests that alter it work on a copy."""
    return toy_bundle.write(tmp_path_factory.mktemp("toy"))
