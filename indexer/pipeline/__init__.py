"""Discover, read, encode, write: ``run.index_archive`` for a source, ``indexing.Indexer`` for parts
of it. ``file_reader.FileReader`` reads files for whoever has no index to fill.
"""
