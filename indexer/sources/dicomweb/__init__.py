"""DICOMweb servers (QIDO-RS, WADO-RS). ``source.DicomWebSource`` is the front door."""
