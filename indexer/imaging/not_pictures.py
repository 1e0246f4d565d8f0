"""The SOP classes whose pixels are no picture: labels of structures, doses, measured quantities."""

__all__ = ["NOT_PICTURES"]

NOT_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map Storage",
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.77.1.5.8": "Ophthalmic OCT B-scan Volume Analysis Storage",
    "1.2.840.10008.5.1.4.1.1.81.1": "Ophthalmic Thickness Map Storage",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT Dose Storage",
}
"""Names by SOP Class UID of the Storage Service Class (PS3.4 B.5, PS3.6 table A-1): those with
pixel data that is no image of a patient."""
