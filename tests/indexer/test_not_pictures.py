"""Objects whose pixels are labels, doses or measurements are refused as such (PS3.4 B.5)."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import KEY, LIMITS, dataset, encode

from engine.errors import ImageRefused, RefusalReason
from engine.settings import IndexingSettings
from indexer.imaging.frames import FramePolicy
from indexer.imaging.read import read_image_bytes

PIXELS = np.arange(400, dtype=np.uint16).reshape(20, 20)
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
RT_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
CLASSES = {
    SEGMENTATION: "Segmentation Storage",
    RT_DOSE: "RT Dose Storage",
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map Storage",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
}


def reason(content: bytes) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        read_image_bytes(content, LIMITS, frames_per_instance=8, pseudonym_key=KEY)
    return caught.value


@pytest.mark.parametrize("sop_class", CLASSES)
def test_they_are_refused_for_what_they_are(sop_class):
    refused = reason(encode(dataset(PIXELS, SOPClassUID=sop_class)))
    assert refused.reason is RefusalReason.NOT_A_PICTURE
    assert CLASSES[sop_class] in refused.detail
    assert "indexing.take_derived" in refused.detail


def test_without_pixels_they_have_none():
    refused = reason(encode(dataset(SOPClassUID=SEGMENTATION)))
    assert refused.reason is RefusalReason.NO_PIXELS


def test_the_class_is_known_from_the_file_meta_information_alone():
    """PS3.10 7.1: Media Storage SOP Class UID."""
    made = dataset(PIXELS, SOPClassUID=RT_DOSE)
    content = encode(made)
    where = content.index(b"\x08\x00\x16\x00UI")
    length = int.from_bytes(content[where + 6 : where + 8], "little")
    without = content[:where] + content[where + 8 + length :]
    assert reason(without).reason is RefusalReason.NOT_A_PICTURE


def test_they_are_read_where_that_is_asked_for():
    policy = FramePolicy(derived=True)
    found = read_image_bytes(
        encode(dataset(PIXELS, SOPClassUID=RT_DOSE)),
        LIMITS,
        frames_per_instance=policy,
        pseudonym_key=KEY,
    )
    assert found.frames[0].pixels.shape == (20, 20)


@pytest.mark.slow
def test_the_setting_lets_them_into_the_index(site, model):
    path: Path = site.write("dose.dcm", encode(dataset(PIXELS, SOPClassUID=RT_DOSE)))
    assert site.index().refused == {"not-a-picture": 1}
    chosen = site.settings.indexing.model_dump() | {"take_derived": True}
    site.settings = site.settings.model_copy(update={"indexing": IndexingSettings(**chosen)})
    assert site.index(retry_refused=True).indexed == 1
    with site.open() as archive, archive.query_reader() as reader:
        (image,) = reader.read([path])
        assert image.id_in("default") in site_ids(archive)


def site_ids(archive) -> set[str]:
    return {
        point_id
        for found in archive.ledger.points_of(archive.ledger.find()).values()
        for point_id in found
    }
