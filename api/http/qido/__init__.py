"""Answers in QIDO-RS (PS3.18 10.6): studies and series in DICOM JSON."""
