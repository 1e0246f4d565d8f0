"""Files before their pixels are decoded: locators, opening, containers, DICOM structure, limits.

The lowest layer of ``indexer``: it imports nothing else of that package.
"""
