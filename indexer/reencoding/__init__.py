"""Another model for an indexed archive. ``reencode.reencode`` is the front door."""
