"""DICOM documents of an answer: made of it, read back, and sent to a PACS."""
