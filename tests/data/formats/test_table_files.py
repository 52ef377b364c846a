from pathlib import Path

import pytest

from headstart.data.readers import read_dataset
from headstart.errors import LayoutError

ARCHIVES = (
    "zip",
    "tar",
    "tar.gz",
    "tgz",
    "tar.bz2",
    "tbz2",
    "tar.xz",
    "txz",
    "tar.zst",
    "7z",
    "rar",
)


@pytest.mark.parametrize("suffix", ARCHIVES)
def test_archives_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photos.{suffix}"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(LayoutError, match=rf"photos\.{suffix}'\. Unpack it and pass the folder"):
        read_dataset(path)


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/photos.zip",
        "http://example.com/photos",
        "ftp://example.com/photos.tar",
        "s3://bucket/photos/",
        "gs://bucket/photos.tar.gz",
        "hf://datasets/owner/name",
    ],
)
def test_addresses_are_refused(address: str) -> None:
    with pytest.raises(
        LayoutError, match=r"is an address.*Download it, unpack it if it is an arch"
    ):
        read_dataset(address)
