"""The vector store: keeps, filters and ranks the indexed points."""
