"""Reads instances from DICOMweb servers (QIDO-RS, WADO-RS): ``source.DicomWebSource``."""
