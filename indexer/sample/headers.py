"""DICOM headers of the sample: patient, study and series, and what each IOD asks for."""

import datetime
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

__all__ = [
    "Patient",
    "Series",
    "Study",
    "code_item",
    "ct",
    "enhanced_mr",
    "film",
    "image_plane",
    "mammography",
    "mr",
    "new_dataset",
    "radiograph",
    "uid",
]

# (code, scheme, meaning) of the regions the radiograph IODs want coded: PS3.16 CID 4009, 4013.
_REGIONS = {
    "CHEST": ("51185008", "SCT", "Chest"),
    "HAND": ("85562004", "SCT", "Hand"),
    "KNEE": ("72696002", "SCT", "Knee"),
    "BREAST": ("76752008", "SCT", "Breast"),
}


def uid(*sources: object) -> UID:
    """A UID that depends on the sources alone, so that a seed gives the same files again."""
    return generate_uid(entropy_srcs=["precedent-sample", *(str(source) for source in sources)])


@dataclass(frozen=True, slots=True)
class Patient:
    """A person who does not exist. ``anatomy`` seeds the phantoms."""

    id: str
    name: str
    sex: str
    birth: datetime.date
    anatomy: int
    lesion: bool


@dataclass(frozen=True, slots=True)
class Study:
    """One visit."""

    patient: Patient
    uid: UID
    date: datetime.date
    description: str
    number: int
    hour: int

    @property
    def age(self) -> int:
        """Years of age at the visit."""
        born = self.patient.birth
        return (
            self.date.year - born.year - ((self.date.month, self.date.day) < (born.month, born.day))
        )


@dataclass(frozen=True, slots=True)
class Series:
    """One series of a study."""

    study: Study
    number: int
    modality: str
    body_part: str
    description: str

    @property
    def uid(self) -> UID:
        """Derived from the study's."""
        return uid(self.study.uid, "series", self.number)


def code_item(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence (PS3.3, 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def new_dataset(series: Series, sop_class: UID, number: int) -> Dataset:
    """A data set with the patient, study, series and equipment modules, and file meta."""
    study, patient = series.study, series.study.patient
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = sop_class
    ds.SOPClassUID = sop_class
    ds.SOPInstanceUID = uid(series.uid, "instance", number)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = uid("implementation")
    ds.file_meta.ImplementationVersionName = "PRECEDENT_SAMPLE"
    ds.SpecificCharacterSet = "ISO_IR 100"

    ds.PatientName, ds.PatientID = patient.name, patient.id
    ds.PatientBirthDate = patient.birth.strftime("%Y%m%d")
    ds.PatientSex, ds.PatientAge = patient.sex, f"{study.age:03d}Y"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study.uid, series.uid
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = study.date.strftime("%Y%m%d")
    ds.StudyTime = f"{study.hour:02d}1500"
    ds.SeriesTime = f"{study.hour:02d}{20 + series.number:02d}00"
    ds.ContentTime = f"{study.hour:02d}{20 + series.number:02d}{number % 60:02d}"
    ds.StudyID, ds.StudyDescription = f"S{study.number}", study.description
    ds.AccessionNumber = f"{patient.id}-{study.number}"
    ds.ReferringPhysicianName = ""
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = series.modality, series.number, number
    ds.SeriesDescription, ds.BodyPartExamined = series.description, series.body_part
    ds.Manufacturer = "Precedent phantom"
    ds.ManufacturerModelName = f"Phantom {series.modality}"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "0001", "1"
    ds.InstitutionName = "Precedent Sample Hospital"
    ds.PatientOrientation = ""
    return ds


def image_plane(ds: Dataset, position: float, thickness: float, field: float, size: int) -> None:
    """The modules that place an axial slice in space; lengths in millimetres."""
    spacing = round(field / size, 4)
    del ds.PatientOrientation  # says the same as the orientation below
    ds.AcquisitionNumber = 1
    ds.AcquisitionDate, ds.AcquisitionTime = ds.ContentDate, ds.ContentTime
    ds.PatientPosition = "HFS"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(ds.StudyInstanceUID, "frame"), ""
    ds.SliceThickness, ds.SliceLocation = thickness, round(position, 3)
    ds.PixelSpacing = [spacing, spacing]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient = [-round(field / 2, 3), -round(field / 2, 3), round(position, 3)]


def ct(ds: Dataset, windows: list[tuple[int, int, str]], intercept: int, kernel: str) -> None:
    """The CT image module; windows are centre and width in HU, and a name."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.KVP, ds.XRayTubeCurrent, ds.ExposureTime = 120, 200, 500
    ds.ConvolutionKernel = kernel
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = intercept, 1, "HU"
    set_windows(ds, windows)


def set_windows(ds: Dataset, windows: list[tuple[int, int, str]]) -> None:
    """The VOI LUT module: one window, or several with a name each."""
    if len(windows) == 1:
        ds.WindowCenter, ds.WindowWidth = windows[0][0], windows[0][1]
        return
    ds.WindowCenter = [window[0] for window in windows]
    ds.WindowWidth = [window[1] for window in windows]
    ds.WindowCenterWidthExplanation = [window[2] for window in windows]


def mr(ds: Dataset, echo: float, repetition: float, sequence: str, window: int) -> None:
    """The MR image module; times in milliseconds."""
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = sequence, "SK", ""
    ds.MRAcquisitionType, ds.MagneticFieldStrength = "2D", 1.5
    ds.EchoTime, ds.RepetitionTime, ds.EchoTrainLength, ds.FlipAngle = echo, repetition, 1, 70
    set_windows(ds, [(window // 2, window, "")])


def radiograph(ds: Dataset, view: str, laterality: str, inverted: bool) -> None:
    """The modules that CR, DX and MG share. ``laterality``: L, R, or empty for a whole body."""
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.ViewPosition = view
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.PatientOrientation = ["L", "F"]
    ds.KVP, ds.ExposureTime, ds.XRayTubeCurrent = 70, 20, 200
    ds.AcquisitionDate, ds.AcquisitionTime = ds.ContentDate, ds.ContentTime
    ds.PixelSpacing = ds.ImagerPixelSpacing = [1, 1]
    set_windows(ds, [(2048, 4096, "")])
    if ds.Modality == "CR":
        if laterality:
            ds.Laterality = laterality
        ds.PlateType, ds.CassetteSize = "", ""
        return
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.ImageLaterality = laterality or "U"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if inverted else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    ds.DetectorType = "DIRECT"
    region = _REGIONS[ds.BodyPartExamined]
    ds.AnatomicRegionSequence = Sequence([code_item(*region)])


def mammography(ds: Dataset, view: str) -> None:
    """What a mammogram carries beyond a radiograph."""
    ds.PositionerType, ds.OrganExposed = "MAMMOGRAPHIC", "BREAST"
    ds.BreastImplantPresent, ds.PartialView = "NO", "NO"
    ds.CompressionForce, ds.BodyPartThickness = 90, 52
    meanings = {
        "CC": ("399162004", "SCT", "cranio-caudal"),
        "MLO": ("399368009", "SCT", "medio-lateral oblique"),
    }
    item = code_item(*meanings[view])
    item.ViewModifierCodeSequence = Sequence([])
    ds.ViewCodeSequence = Sequence([item])


def film(ds: Dataset, milliseconds: float) -> None:
    """The cine module of a multi-frame image."""
    ds.FrameTime = milliseconds
    ds.FrameIncrementPointer = 0x00181063
    ds.CineRate = round(1000 / milliseconds)


def enhanced_mr(ds: Dataset, frames: int, spacing: float, window: int) -> None:
    """The functional groups of an enhanced MR image (PS3.3, A.36)."""
    del ds.PatientOrientation
    ds.ImageType = ["ORIGINAL", "PRIMARY", "CARDIAC", "NONE"]
    ds.InstanceNumber, ds.ContentQualification = 1, "PRODUCT"
    ds.AcquisitionDateTime = ds.ContentDate + ds.ContentTime
    ds.AcquisitionDuration, ds.AcquisitionNumber = 900.0, 1
    ds.PixelPresentation, ds.VolumetricProperties = "MONOCHROME", "VOLUME"
    ds.VolumeBasedCalculationTechnique = "NONE"
    ds.ComplexImageComponent, ds.AcquisitionContrast = "MAGNITUDE", "UNKNOWN"
    ds.MagneticFieldStrength, ds.ResonantNucleus = 1.5, "1H"
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.PresentationLUTShape = "IDENTITY"
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = uid(ds.StudyInstanceUID, "frame"), ""
    measures, values, voi, plane = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing, spacing], 8
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = 0, 1, "US"
    set_windows(voi, [(window // 2, window, "")])
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PixelValueTransformationSequence = Sequence([values])
    shared.FrameVOILUTSequence = Sequence([voi])
    shared.PlaneOrientationSequence = Sequence([plane])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    ds.PerFrameFunctionalGroupsSequence = Sequence([_frame(k, frames) for k in range(frames)])


def _frame(index: int, frames: int) -> Dataset:
    content, place, beat, group = Dataset(), Dataset(), Dataset(), Dataset()
    content.FrameAcquisitionNumber = 1
    content.TemporalPositionIndex = index + 1
    content.StackID, content.InStackPositionNumber = "1", 1
    place.ImagePositionPatient = [-160, -160, 0]
    beat.NominalCardiacTriggerDelayTime = float(np.round(900 * index / frames, 1))
    group.FrameContentSequence = Sequence([content])
    group.PlanePositionSequence = Sequence([place])
    group.CardiacSynchronizationSequence = Sequence([beat])
    return group
