"""Turns a file into display pixels and an allow-listed record. Runs in the reading processes."""
