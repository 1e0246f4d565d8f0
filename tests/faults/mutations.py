"""Damaged images, reproducibly: whole files of every kind, and what may befall them."""

import gzip
import io
import struct
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from backports import zstd
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

# The builders of the indexer's tests.
sys.path.append(str(Path(__file__).parents[1] / "indexer"))
from dicom_files import SAMPLES, dataset, encode
from jpeg_streams import blocks, lossless

__all__ = ["SAMPLES", "TOKEN", "archive_mutants", "mutants", "whole_files"]

TOKEN = "SECRETNAME^"
"""Stands in every whole file where patients are named, and in text beside pictures."""

_PYDICOM = (
    *("CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"),
    *("MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"),
    *("MR_small_padded.dcm", "693_J2KI.dcm", "JPEG2000.dcm", "GDCMJ2K_TextGBR.dcm"),
    *("JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "JPGExtended.dcm"),
    *("SC_jpeg_no_color_transform.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_gdcm_KY.dcm"),
    *("SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm", "SC_rgb_jpeg_dcmtk.dcm"),
    *("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_2frame.dcm", "SC_rgb_rle_32bit.dcm"),
    *("SC_ybr_full_422_uncompressed.dcm", "badVR.dcm", "image_dfl.dcm", "liver_1frame.dcm"),
    *("rtdose.dcm", "rtdose_rle.dcm", "rtplan.dcm", "rtstruct.dcm", "reportsi.dcm"),
    *("test-SR.dcm", "UN_sequence.dcm", "nested_priv_SQ.dcm", "priv_SQ.dcm"),
    *("dicomdirtests/DICOMDIR", "ExplVR_BigEnd.dcm", "no_meta_group_length.dcm"),
    "meta_missing_tsyntax.dcm",
)
_NAMING = (
    *("PatientName", "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyDescription"),
    *("InstitutionName", "ReferringPhysicianName", "PatientComments"),
)
_SIDE = 48
# Lengths at the edges of what 16 and 32 bits can say.
_EDGES = (0, 1, 2, 7, 8, 0x7F, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def whole_files() -> dict[str, bytes]:
    """By name: DICOM of pydicom's own and of many transfer syntaxes, pictures of other formats,
    volumes, and packed files."""
    found = {name: _renamed((SAMPLES / name).read_bytes()) for name in _PYDICOM}
    made = (_written(), _odd(), _rasters(), _rare_rasters(), _others())
    return found | {name: content for kind in made for name, content in kind}


def _renamed(content: bytes) -> bytes:
    """``content`` with what names the patient replaced by as much of :data:`TOKEN`."""
    with warnings.catch_warnings(action="ignore"):
        header = pydicom.dcmread(io.BytesIO(content), force=True)
        naming = [str(header.get(keyword, "")) for keyword in _NAMING]
        manufacturer = str(header.get("Manufacturer", ""))
    for said in (part for name in naming for part in name.split("^")):
        # The name of an institution that is its manufacturer's is nobody's secret.
        if len(said) >= 4 and said not in manufacturer:
            token = (TOKEN * 9)[: len(said)].encode()
            content = content.replace(said.encode("latin-1", "replace"), token)
    return content


def _waves(seed: int) -> np.ndarray:
    """uint16 (48, 48), values below 4096."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(_SIDE), np.arange(_SIDE))
    wave = np.sin(np.hypot(x - rng.uniform(0, 48), y) * rng.uniform(0.1, 0.5))
    return (2048 + 1800 * wave + rng.normal(0, 40, x.shape)).clip(0, 4095).astype(np.uint16)


def _item(**elements: object) -> Dataset:
    made = Dataset()
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    return made


def _named(pixels: np.ndarray, **elements: object) -> Dataset:
    """A dataset of ``pixels`` that names a patient in many places."""
    made = dataset(pixels, **elements)
    made.PatientName = f"{TOKEN}JANE"
    made.PatientID = made.OtherPatientIDs = made.AccessionNumber = made.StationName = TOKEN
    made.StudyDescription = made.Manufacturer = f"{TOKEN} was here"
    made.PatientComments = TOKEN * 20
    made.Modality, made.BodyPartExamined = "CT", "CHEST"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    made.SOPInstanceUID = "1.2.826.0.1.3680043.10.977.1.1000000"
    made.ReferencedStudySequence = [_item(ReferencedSOPInstanceUID="1.2.9", StudyID=TOKEN)]
    made.RequestAttributesSequence = [_item(RequestedProcedureDescription=TOKEN)] * 2
    made.private_block(0x0011, TOKEN, create=True).add_new(1, "LT", TOKEN * 3)
    return made


def _compressed(made: Dataset, syntax: str) -> bytes:
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.compress(syntax, generate_instance_uid=False)
    return encode(made, syntax)


def _jpeg_frames(count: int) -> list[bytes]:
    frames = []
    for seed in range(count):
        out = io.BytesIO()
        Image.fromarray((_waves(seed) >> 4).astype(np.uint8)).save(out, "JPEG")
        frames.append(out.getvalue() + b"\0" * (len(out.getvalue()) % 2))
    return frames


def _written() -> Iterator[tuple[str, bytes]]:
    """In eight transfer syntaxes, and with every part of a header that is looked at."""
    slice_, movie = _waves(0), np.stack([_waves(seed) for seed in range(4)])
    window = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2000, "WindowWidth": 3000}
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        yield syntax.keyword, encode(_named(slice_, **window), syntax)
    swapped = _named(slice_, **window)
    swapped.PixelData = slice_.astype(">u2").tobytes()
    yield ExplicitVRBigEndian.keyword, encode(swapped, ExplicitVRBigEndian)
    for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        yield syntax.keyword, _compressed(_named(slice_, **window), syntax)
        yield f"{syntax.keyword} movie", _compressed(_named(movie, **window), syntax)
    baseline = _named((movie >> 4).astype(np.uint8))
    baseline.PixelData, baseline.ExtendedOffsetTable, baseline.ExtendedOffsetTableLengths = (
        encapsulate_extended(_jpeg_frames(4))
    )
    baseline["PixelData"].is_undefined_length = True
    yield f"{JPEGBaseline8Bit.keyword} movie", encode(baseline, JPEGBaseline8Bit)
    yield "palette", encode(_palette())
    yield "tables", encode(_tables(slice_))
    yield "enhanced", encode(_enhanced(movie))
    floats = _named(slice_, BitsAllocated=32, BitsStored=None, HighBit=None)
    del floats.PixelData, floats.PixelRepresentation
    floats.FloatPixelData = slice_.astype("<f4").tobytes()
    yield "floats", encode(floats)


def _odd() -> Iterator[tuple[str, bytes]]:
    """Kinds that fewer machines write: other processes of JPEG, other cells, other colours."""
    deep, bytes_ = _waves(8), (_waves(9) >> 4).astype(np.uint8)
    twelve = {"BitsStored": 12, "HighBit": 11}
    for name, syntax, stream, more in (
        ("lossless", JPEGLosslessSV1, lossless(deep, 12), twelve),
        ("lossless bytes", JPEGLosslessSV1, lossless(bytes_, 8), {}),
        ("twelve", JPEGExtended12Bit, blocks(deep[:6, :6], 12), twelve),
    ):
        made = _named(bytes_ if name == "lossless bytes" else deep, **more)
        made.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
        made["PixelData"].is_undefined_length = True
        yield name, encode(made, syntax)
    bits = np.stack([_waves(seed)[:47, :47] > 2048 for seed in range(5)])
    single = _named(bits.astype(np.uint8), BitsAllocated=1, BitsStored=1, HighBit=0)
    single.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes() + b"\0"
    yield "single bits", encode(single)
    pairs = deep.ravel().astype(np.uint32)
    packed = pairs[::2] | pairs[1::2] << 12
    cells = _named(deep, BitsAllocated=12, **twelve)
    cells.PixelData = packed.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    yield "twelve allocated", encode(cells)
    color = np.stack([bytes_, bytes_[::-1], bytes_.T], axis=-1)
    partial = _named(color, PhotometricInterpretation="YBR_PARTIAL_422")
    partial.PixelData = np.clip(color, 16, 235).reshape(-1)[: color.size // 3 * 2].tobytes()
    yield "partial range", encode(partial)
    planes = _named(color, PlanarConfiguration=1)
    planes.PixelData = np.moveaxis(color, -1, 0).tobytes()
    yield "planes", encode(planes)
    yield "supplemental", encode(_supplemental(deep))
    yield "data paths", encode(_data_paths(np.stack([bytes_, bytes_.T])))
    yield (
        "oblong",
        encode(
            _named(deep[::2], PixelAspectRatio=[2, 1], ImageOrientationPatient=[-1, 0, 0, 0, -1, 0])
        ),
    )
    for name, stream in (
        ("in fragments", deep.tobytes()),
        ("deflated frame", zlib.compress(deep.tobytes(), wbits=-15)),
    ):
        made = _named(deep, **twelve)
        made.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
        made["PixelData"].is_undefined_length = True
        content = encode(made, "1.2.840.10008.1.2.1.98")
        # pydicom writes no file of the transfer syntax that deflates frames.
        named = b".1.98" if name == "in fragments" else b".8.1\0"
        yield name, content.replace(b"10008.1.2.1.98", b"10008.1.2" + named)
    yield "no preamble", encode(_named(deep, **twelve))[132:]
    short = _named(np.stack([_waves(seed) for seed in range(6)]), **twelve)
    short.PixelData = short.PixelData[: -5 * _SIDE * _SIDE]
    yield "fewer frames", encode(short)
    doubles = _named(deep, BitsAllocated=64, BitsStored=None, HighBit=None)
    del doubles.PixelData, doubles.PixelRepresentation
    doubles.DoubleFloatPixelData = deep.astype("<f8").tobytes()
    yield "doubles", encode(doubles)


def _supplemental(pixels: np.ndarray) -> Dataset:
    made = _named(pixels, PixelPresentation="COLOR", BitsStored=12, HighBit=11)
    for color in ("Red", "Green", "Blue"):
        setattr(made, f"{color}PaletteColorLookupTableDescriptor", [256, 3840, 16])
        entries = np.arange(256, dtype="<u2") << 8
        setattr(made, f"{color}PaletteColorLookupTableData", entries.tobytes())
    return made


def _data_paths(pixels: np.ndarray) -> Dataset:
    kinds = ("TISSUE_INTENSITY", "FLOW_VELOCITY")
    paths = ("PRIMARY_SINGLE", "SECONDARY_SINGLE")
    colored = _palette()
    colored.DataPathID, colored.RGBLUTTransferFunction = "SECONDARY", "TABLE"
    return _named(
        pixels,
        PerFrameFunctionalGroupsSequence=[
            _item(ImageDataTypeSequence=[_item(DataType=kind)]) for kind in kinds
        ],
        DataFrameAssignmentSequence=[
            _item(DataType=kind, DataPathAssignment=path, BitsMappedToColorLookupTable=4)
            for kind, path in zip(kinds, paths, strict=True)
        ],
        EnhancedPaletteColorLookupTableSequence=[
            _item(DataPathID="PRIMARY", RGBLUTTransferFunction="EQUAL_RGB"),
            colored.group_dataset(0x0028),
        ],
    )


def _palette() -> Dataset:
    made = _named((_waves(1) >> 8).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    words = [0, 3, 10, 20, 30, 1, 5, 80, 2, 1, 0, 0, 1, 5, 80]
    for color in ("Red", "Green", "Blue"):
        setattr(made, f"{color}PaletteColorLookupTableDescriptor", [16, 0, 16])
        segments = np.array(words, "<u2").tobytes()
        setattr(made, f"Segmented{color}PaletteColorLookupTableData", segments)
    return made


def _tables(pixels: np.ndarray) -> Dataset:
    lut = {"LUTDescriptor": [64, 1000, 12], "LUTExplanation": TOKEN}
    made = _named(pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=900)
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        item = _item(**lut)
        item.add_new("LUTData", "US", list(range(0, 4096, 64)))
        setattr(made, keyword, [item])
    made.add_new((0x6000, 0x0022), "LO", TOKEN)
    made.add_new((0x6000, 0x3000), "OW", b"\x55" * (_SIDE * _SIDE // 8))
    return made


def _enhanced(pixels: np.ndarray) -> Dataset:
    groups = [
        _item(FrameVOILUTSequence=[_item(WindowCenter=1000 + 300 * frame, WindowWidth=800)])
        for frame in range(len(pixels))
    ]
    shared = _item(PixelValueTransformationSequence=[_item(RescaleSlope=2, RescaleIntercept=-9)])
    return _named(
        pixels,
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[shared],
        RepresentativeFrameNumber=2,
    )


def _rasters() -> Iterator[tuple[str, bytes]]:
    grey = (_waves(2) >> 4).astype(np.uint8)
    color = Image.fromarray(np.stack([grey, grey[::-1], grey.T], axis=-1))
    said = PngImagePlugin.PngInfo()
    said.add_text("Comment", TOKEN * 5)
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = TOKEN, 6  # description, orientation
    pictures = {
        "grey": Image.fromarray(grey),
        "color": color,
        "palette": color.quantize(16),
        "deep": Image.fromarray(_waves(3)),
        "bits": Image.fromarray(grey > 127),
        "transparent": color.convert("RGBA"),
    }
    for name, picture in pictures.items():
        out = io.BytesIO()
        picture.save(out, "PNG", pnginfo=said)
        yield f"{name}.png", out.getvalue()
    for name, picture, options in (
        ("grey", pictures["grey"], {}),
        ("color", color, {"exif": exif}),
        ("progressive", color, {"progressive": True}),
        ("cmyk", color.convert("CMYK"), {}),
    ):
        out = io.BytesIO()
        picture.save(out, "JPEG", comment=TOKEN, **options)
        yield f"{name}.jpg", out.getvalue()


def _rare_rasters() -> Iterator[tuple[str, bytes]]:
    """Other writings of TIFF, JPEG 2000, WebP and BMP."""
    grey = (_waves(10) >> 4).astype(np.uint8)
    color = Image.fromarray(np.stack([grey, grey[::-1], grey.T], axis=-1))
    flat, deep = Image.fromarray(grey), Image.fromarray(_waves(11))
    pages = {"save_all": True, "append_images": [flat.rotate(90), flat.rotate(180)]}
    for name, picture, kind, options in (
        *(
            (f"{compression}.tif", color, "TIFF", {"compression": compression})
            for compression in ("tiff_adobe_deflate", "jpeg", "packbits")
        ),
        ("fax.tif", flat.convert("1"), "TIFF", {"compression": "group4"}),
        ("big.tif", deep, "TIFF", {"big_tiff": True}),
        ("cmyk.tif", color.convert("CMYK"), "TIFF", {}),
        ("palette.tif", color.quantize(16), "TIFF", {}),
        ("flat pages.tif", flat, "TIFF", pages),
        ("deep.jp2", deep, "JPEG2000", {}),
        ("lossy.jp2", color, "JPEG2000", {"irreversible": True, "quality_layers": [20]}),
        ("stream.j2k", flat, "JPEG2000", {"no_jp2": True, "tile_size": (32, 32)}),
        ("lossless.webp", color.convert("RGBA"), "WEBP", {"lossless": True}),
        ("moving.webp", color, "WEBP", {"save_all": True, "append_images": [color.rotate(90)]}),
        ("palette.bmp", color.quantize(16), "BMP", {}),
        ("bits.bmp", flat.convert("1"), "BMP", {}),
    ):
        out = io.BytesIO()
        picture.save(out, kind, **options)
        yield name, out.getvalue()


def _others() -> Iterator[tuple[str, bytes]]:
    """TIFF, JPEG 2000, WebP, BMP and NIfTI, and files that are packed as a whole."""
    grey = (_waves(4) >> 4).astype(np.uint8)
    color = Image.fromarray(np.stack([grey, grey[::-1], grey.T], axis=-1))
    said = {"tiffinfo": {270: TOKEN * 5}}
    pages = {"save_all": True, "append_images": [color.rotate(90), color.rotate(180)]}
    for name, picture, kind, options in (
        ("deep.tif", Image.fromarray(_waves(5)), "TIFF", said),
        ("floats.tif", Image.fromarray(_waves(5).astype(np.float32)), "TIFF", said),
        ("pages.tif", color, "TIFF", {"compression": "tiff_lzw", **said, **pages}),
        ("color.jp2", color, "JPEG2000", {"comment": TOKEN}),
        ("color.webp", color, "WEBP", {"exif": TOKEN.encode()}),
        ("color.bmp", color, "BMP", {}),
    ):
        out = io.BytesIO()
        picture.save(out, kind, **options)
        yield name, out.getvalue()
    volume = _nifti(np.stack([_waves(seed) for seed in range(9)], axis=-1))
    yield "volume.nii", volume
    yield "volume.nii.gz", gzip.compress(volume, mtime=0)
    yield (
        "volumes.nii",
        _nifti(np.stack([_waves(seed) for seed in range(8)], -1).reshape(48, 48, 4, 2)),
    )
    made = _named(_waves(6))
    made.SOPInstanceUID = "1.2.3.4.5.6"
    yield "packed.dcm.gz", gzip.compress(encode(made), mtime=0)
    made.SOPInstanceUID = "1.2.3.4.5.7"
    yield "packed.dcm.zst", zstd.compress(encode(made))
    unknown = encode(_named(_waves(7)))
    at = unknown.index(struct.pack("<HH", 0x0028, 0x0002) + b"US")
    inner = struct.pack("<HHL", 0x0021, 0x1002, 88) + (TOKEN * 9).encode()[:88]
    odd = struct.pack("<HH", 0x0021, 0x1001) + b"UN\0\0" + b"\xff" * 4
    odd += struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
    odd += struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    odd += struct.pack("<HH2sH", 0x0021, 0x1003, b"??", 4) + b"abcd"
    yield "unknown", unknown[:at] + odd + unknown[at:]


def _nifti(values: np.ndarray) -> bytes:
    """A NIfTI-1 file of uint16 (x, y, z), as nifti1.h has it."""
    head = bytearray(352)
    struct.pack_into("<L", head, 0, 348)
    shape = (*values.shape, 1, 1, 1, 1)[:7]
    struct.pack_into("<8h", head, 40, values.ndim, *shape)
    struct.pack_into("<2h", head, 70, 512, 16)
    struct.pack_into("<8f", head, 76, *(1.0,) * 8)
    struct.pack_into("<3f", head, 108, 352, 2, -100)
    head[148:228] = (TOKEN * 8).encode()[:80]
    struct.pack_into("<2h", head, 252, 0, 1)
    struct.pack_into("<12f", head, 280, *np.eye(4)[:3].ravel())
    head[344:348] = b"n+1\0"
    return bytes(head) + values.astype("<u2").tobytes(order="F")


def mutants(files: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged ones of ``files``, each file in its turn, with the name of the whole.

    Each is an instance of its own, where the UID can be changed without changing lengths: two
    contents under one UID would be refused for that.
    """
    rng = np.random.default_rng(seed)
    names = sorted(files)
    uids = {name: _instance_uid(content) for name, content in files.items()}
    for number in range(count):
        name = names[number % len(names)]
        whole = _numbered(files[name], uids[name], number)
        unpack, pack = _PACKINGS.get(Path(name).suffix, (bytes, bytes))
        # What is packed is damaged inside, too, where the packing is in order.
        inside = rng.random() < 0.5
        damaged = _damaged(unpack(whole) if inside else whole, rng)
        yield name, pack(damaged) if inside else damaged


def archive_mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged archives of three pictures each, by name: of every kind in its turn, and
    damaged outside, inside of what packs them, or in a picture."""
    rng = np.random.default_rng(seed)
    kinds = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip", ".zip")
    picture = next(content for name, content in _rasters() if name == "grey.png")
    made = _named(_waves(12))
    for number in range(count):
        kind = kinds[number % len(kinds)]
        made.SOPInstanceUID = f"1.2.826.0.1.3680043.10.977.2.{number}"
        members = {
            f"{TOKEN}/one.dcm": encode(made),
            f"{TOKEN * 12}/two.png": picture + b"%d" % number,
            "three.dcm.gz": gzip.compress(
                encode(_named(_waves(13), SOPInstanceUID=f"1.2.9.{number}"))
            ),
        }
        where = rng.random()
        if where < 0.2:
            some = sorted(members)[int(rng.integers(len(members)))]
            members[some] = _damaged(members[some], rng)
        form = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[int(rng.integers(2))]
        stored = number % len(kinds) == len(kinds) - 1
        inner = _zip(members, stored=stored) if kind == ".zip" else _tar(members, form)
        if 0.2 <= where < 0.6:
            inner = _damaged(inner, rng)
        outer = _PACKINGS.get(kind[kind.rfind(".") :].replace("tgz", "gz"), (bytes, bytes))[1](
            inner
        )
        yield f"files{kind}", _damaged(outer, rng) if where >= 0.6 else outer


def _tar(members: dict[str, bytes], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = len(content), 1_600_000_000, TOKEN
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _zip(members: dict[str, bytes], *, stored: bool) -> bytes:
    out = io.BytesIO()
    how = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(out, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


_Coding = Callable[[bytes], bytes]
_PACKINGS: dict[str, tuple[_Coding, _Coding]] = {
    ".gz": (gzip.decompress, gzip.compress),
    ".zst": (zstd.decompress, zstd.compress),
}


def _damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """``content`` with one to three damages."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        damage = _DAMAGES[int(rng.integers(len(_DAMAGES)))]
        damage(changed, rng)
    return bytes(changed)


def _instance_uid(content: bytes) -> bytes:
    with warnings.catch_warnings(action="ignore"):
        header = pydicom.dcmread(io.BytesIO(content), force=True, stop_before_pixels=True)
        return str(header.get("SOPInstanceUID", "")).encode()


def _numbered(content: bytes, uid: bytes, number: int) -> bytes:
    """``content`` with another end of its SOP Instance UID for each ``number``."""
    end = b".%d" % (1_000_000 + number)
    return content.replace(uid, uid[: -len(end)] + end) if len(uid) > len(end) else content


def _place(content: bytearray, rng: np.random.Generator) -> int:
    """A position: half of the time in the header, where lengths and sizes are."""
    end = len(content) if rng.random() < 0.5 else min(len(content), 1500)
    return int(rng.integers(max(1, end)))


def _flip(content: bytearray, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 9))):
        position = _place(content, rng)
        content[position : position + 1] = rng.bytes(1)


def _cut(content: bytearray, rng: np.random.Generator) -> None:
    del content[_place(content, rng) :]


def _length(content: bytearray, rng: np.random.Generator) -> None:
    """Another number in a field of 16 or 32 bits, of either byte order."""
    position = _place(content, rng) // 2 * 2
    number = _EDGES[int(rng.integers(len(_EDGES)))]
    form = ("<H", ">H", "<L", ">L")[int(rng.integers(4))]
    written = struct.pack(form, number & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
    content[position : position + len(written)] = written


def _element_length(content: bytearray, rng: np.random.Generator) -> None:
    """Another length of an explicit element, found by its VR."""
    start = _place(content, rng)
    for position in range(start, min(start + 400, len(content) - 8)):
        vr = bytes(content[position : position + 2])
        if vr in (b"SQ", b"OB", b"OW", b"UN", b"UT"):
            number = _EDGES[int(rng.integers(len(_EDGES)))]
            content[position + 4 : position + 8] = struct.pack("<L", number)
            return
        if vr in (b"UI", b"US", b"LO", b"PN", b"CS", b"DS", b"IS", b"DA"):
            number = _EDGES[int(rng.integers(len(_EDGES)))] & 0xFFFF
            content[position + 2 : position + 4] = struct.pack("<H", number)
            return


def _swap(content: bytearray, rng: np.random.Generator) -> None:
    """Two fields of the header change places."""
    size = int(rng.choice((2, 4)))
    first, second = sorted(_place(content, rng) // 2 * 2 for _ in range(2))
    if first + size <= second and second + size <= len(content):
        one, other = content[first : first + size], content[second : second + size]
        content[first : first + size], content[second : second + size] = other, one


def _duplicate(content: bytearray, rng: np.random.Generator) -> None:
    start = _place(content, rng)
    chunk = content[start : start + int(rng.integers(1, 2000))]
    at = _place(content, rng)
    content[at:at] = chunk


def _zero(content: bytearray, rng: np.random.Generator) -> None:
    start = _place(content, rng)
    stop = min(len(content), start + int(rng.integers(1, 300)))
    content[start:stop] = bytes(stop - start)


_DAMAGES: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip,
    _flip,
    _cut,
    _length,
    _element_length,
    _swap,
    _duplicate,
    _zero,
)
