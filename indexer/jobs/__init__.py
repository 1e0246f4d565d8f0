"""Bulk indexing, cut into tasks that several workers share."""
