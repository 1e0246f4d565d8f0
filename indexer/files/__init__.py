"""Files before anything is decoded: where they lie, how they are opened, how they are built.

The ground floor: it imports nothing else of ``indexer``, and anything may import it.
"""
