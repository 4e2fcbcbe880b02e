"""A bundle from an object store, as the server fetches it before it starts."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from covidnet.errors import CovidnetError, UsageError
from covidnet.export.bundle import Bundle
from serving import storage


@pytest.fixture
def stored(bundle_dir: Path) -> Iterator[Bundle]:
    """A bundle that lies in a store that lives in memory."""
    bundle = Bundle.load(bundle_dir)
    memory = fsspec.filesystem("memory")
    memory.put(str(bundle.path), "/models/covidnet", recursive=True)
    yield bundle
    memory.rm("/models", recursive=True)


def test_it_is_fetched_and_verified(stored: Bundle, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    fetched = storage.fetch("memory://models/covidnet/", tmp_path / "here")
    assert Bundle.load(fetched).version == stored.version


def test_a_folder_is_taken_where_it_lies(tmp_path: Path) -> None:
    for uri in ("/mnt/models", "file:///mnt/models"):
        assert storage.fetch(uri, tmp_path) == Path("/mnt/models")


def test_storage_that_lacks_a_file_or_is_away_is_told(stored: Bundle, tmp_path: Path) -> None:
    fsspec.filesystem("memory").rm("/models/covidnet/model.onnx")
    for uri in ("memory://models/covidnet", "memory://models/nothing"):
        with pytest.raises(CovidnetError, match="no bundle at this memory:// address; expected SHA256SUMS"):
            storage.fetch(uri, tmp_path)
    with pytest.raises(CovidnetError, match=r"can't fetch the bundle from http:// storage \(.*check the address"):
        storage.fetch("http://127.0.0.1:9/bundle", tmp_path)


def test_a_scheme_that_nothing_reads_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't read floppy:// here"):
        storage.fetch("floppy://a/b", tmp_path)
