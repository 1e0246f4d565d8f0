"""Copies of one picture look alike, whether or not compression moved its padding."""

import numpy as np
import pytest
from dicom_files import dataset, encode, read
from pydicom.dataset import FileMetaDataset
from pydicom.uid import JPEG2000, ExplicitVRLittleEndian

MR = "1.2.840.10008.5.1.4.1.1.4"
_Y, _X = np.mgrid[:192, :192]
FIELD = (_X - 96) ** 2 + (_Y - 96) ** 2 < 94**2
BODY = (_X - 96) ** 2 / 70**2 + (_Y - 96) ** 2 / 50**2 < 1
NOISE = np.random.default_rng(0).normal(0, 15, FIELD.shape)
UNITS = np.where(BODY, 40 + 300 * (_X > 120), -1000) + NOISE


def slice_of(outside: int) -> np.ndarray:
    """A round slice in Hounsfield units, in a square of ``outside``: int16 (H, W)."""
    return np.where(FIELD, np.maximum(UNITS, -1024), outside).round().astype(np.int16)


def copies(pixels: np.ndarray, ratio: int, **elements: object) -> tuple[np.ndarray, np.ndarray]:
    """What is shown of ``pixels``, stored as they are and compressed with loss."""
    plain = read(encode(dataset(pixels, **elements))).frames[0].pixels
    made = dataset(pixels, **elements)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(JPEG2000, j2k_cr=[ratio], generate_instance_uid=False)
    return plain, read(encode(made, JPEG2000)).frames[0].pixels


def alike(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel().astype(float), second.ravel())[0, 1])


@pytest.mark.parametrize("ratio", [4, 10, 30])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_found_after_compression_with_loss(ratio, photometric):
    """Pixel Padding Value (PS3.3 C.7.5.1.1.2) −2000 comes out as many values about it."""
    elements = {"PixelPaddingValue": -2000, "PhotometricInterpretation": photometric}
    plain, lossy = copies(slice_of(-2000), ratio, SOPClassUID=MR, **elements)
    assert alike(plain, lossy) > 0.99
    assert np.percentile(lossy[~FIELD], 90) == 0


def test_a_copy_that_was_unpacked_again_says_that_it_was_compressed_with_loss():
    pixels = slice_of(-2000)
    pixels[~FIELD] += np.random.default_rng(1).integers(-4, 11, int((~FIELD).sum())).astype("i2")
    elements = {"SOPClassUID": MR, "PixelPaddingValue": -2000}
    plain = read(encode(dataset(slice_of(-2000), **elements))).frames[0].pixels
    moved = dataset(pixels, LossyImageCompression="01", **elements)
    assert alike(plain, read(encode(moved)).frames[0].pixels) > 0.999


def test_a_range_of_padding_is_found_too():
    pixels = slice_of(-2000)
    pixels[:96][~FIELD[:96]] = -1900
    elements = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1900}
    plain, lossy = copies(pixels, 10, SOPClassUID=MR, **elements)
    assert alike(plain, lossy) > 0.99


def test_values_near_padding_are_the_picture_when_nothing_was_lost():
    pixels = np.tile(np.arange(0, 1000, 10, dtype=np.uint16), (100, 1))
    found = read(encode(dataset(pixels, PixelPaddingValue=0, SOPClassUID=MR))).frames[0].pixels
    lossy = dataset(pixels, PixelPaddingValue=0, SOPClassUID=MR, LossyImageCompression="01")
    assert np.array_equal(read(encode(lossy)).frames[0].pixels, found)


def test_air_beside_padding_is_the_picture():
    """Unsigned values from −1024 on, padded with 0: air lies at 24, and on one side only."""
    pixels = np.where(FIELD, np.clip(UNITS + 1024, 0, None), 0).round().astype(np.uint16)
    elements = {"RescaleSlope": 1, "RescaleIntercept": -1024, "PixelPaddingValue": 0}
    window = {"WindowCenter": -600, "WindowWidth": 1500}
    plain, lossy = copies(pixels, 4, **elements, **window)
    air = FIELD & ~BODY & (_X > 20)
    assert abs(float(plain[air].mean()) - float(lossy[air].mean())) < 2


@pytest.mark.parametrize("outside", [-2000, -3024, -32768])
@pytest.mark.parametrize("declared", [False, True])
def test_what_lies_below_air_is_no_part_of_a_ct_picture(outside, declared):
    """Hounsfield units end at about −1024; what is lower surrounds the picture, said or not."""
    elements = {"PixelPaddingValue": outside} if declared else {}
    found = read(encode(dataset(slice_of(outside), **elements))).frames[0].pixels
    alone = read(encode(dataset(slice_of(-1024)))).frames[0].pixels
    assert found[~FIELD].max() == 0
    assert np.abs(found[FIELD].astype(int) - alone[FIELD]).max() <= 3


def test_values_below_air_are_those_of_other_images():
    found = read(encode(dataset(slice_of(-2000), SOPClassUID=MR))).frames[0].pixels
    assert found[FIELD & ~BODY].mean() > 60
