"""Where points are kept."""
