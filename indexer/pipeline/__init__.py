"""The indexing pipeline: discover, read, encode, write.

``run.index_archive`` indexes a whole source, ``indexing.Indexer`` given instances of one.
``file_reader.FileReader`` only reads files, for queries, training and evaluation.
"""
