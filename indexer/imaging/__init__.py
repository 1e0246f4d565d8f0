"""How a file becomes pixels, and what of its header is kept."""
