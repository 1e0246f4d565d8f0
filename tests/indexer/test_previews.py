"""Previews of instances on a DICOMweb server: read again from the address of the settings alone."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dataset, encode
from loopback_pacs import LoopbackPacs
from PIL import Image

from engine.errors import SourceChanged, SourceError, SourceGone
from engine.records import ImageRecord
from engine.settings import DicomWebSettings, IndexingSettings, Settings
from indexer.pipeline.previews import PreviewReader

RECORD = ImageRecord(study="1.2", series="1.3", sop="1.2.3.77", source="pacs")


@pytest.fixture
def pacs() -> Iterator[LoopbackPacs]:
    with LoopbackPacs() as server:
        yield server


def settings(root: Path, url: str | None) -> Settings:
    named = (
        {}
        if url is None
        else {"pacs": DicomWebSettings.model_validate({"kind": "dicomweb", "url": url})}
    )
    return Settings(data_dir=root, sources=named, indexing=IndexingSettings(readers=1))


def content(sop: str) -> bytes:
    pixels = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    return encode(dataset(pixels, SOPInstanceUID=sop))


def rendered(reader: PreviewReader, locator: str, **more: Any) -> bytes:
    return reader.render(RECORD, locator, "other", frame=0, side=64, **more)


def test_an_instance_is_read_again_from_its_server(pacs: LoopbackPacs, tmp_path: Path) -> None:
    locator = pacs.add("1.2", "1.3", "1.2.3.77", content("1.2.3.77"))
    with PreviewReader(settings(tmp_path, pacs.url)) as reader:
        assert Image.open(io.BytesIO(rendered(reader, locator))).size == (64, 64)
        exchanged = pacs.add("1.2", "1.3", "1.2.3.78", content("1.2.3.99"))
        with pytest.raises(SourceChanged, match="source 'pacs'"):
            rendered(reader, exchanged)
        with pytest.raises(SourceGone, match=r"setting sources\.pacs\.url"):
            rendered(reader, locator.replace("1.2.3.77", "1.2.3.1"))


def test_no_other_address_is_asked(pacs: LoopbackPacs, tmp_path: Path) -> None:
    with LoopbackPacs() as other:
        locator = other.add("1.2", "1.3", "1.2.3.77", content("1.2.3.77"))
        for url in (pacs.url, None):
            with (
                PreviewReader(settings(tmp_path, url)) as reader,
                pytest.raises(SourceGone, match=r"setting sources\.pacs\.url"),
            ):
                rendered(reader, locator)
        assert other.asked == pacs.asked == []


def test_a_server_that_is_away_is_not_waited_for(tmp_path: Path) -> None:
    with LoopbackPacs() as gone:
        locator = gone.add("1.2", "1.3", "1.2.3.77", content("1.2.3.77"))
        url = gone.url
    with PreviewReader(settings(tmp_path, url)) as reader, pytest.raises(SourceError) as refused:
        rendered(reader, locator)
    assert not isinstance(refused.value, SourceGone)
