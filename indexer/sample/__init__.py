"""A synthetic archive to try things on."""
