"""Sources of instances: folders, DICOMweb servers, and what a PACS pushes.

``opening.SourceSpec`` opens a source; ``base.ImageSource`` is the protocol of all of them.
"""
