"""Jobs: bulk indexing cut into tasks, which several workers do in parallel under leases."""
