"""A synthetic archive to try things on."""

from indexer.sample.archive import SampleReport, write_queries, write_sample

__all__ = ["SampleReport", "write_queries", "write_sample"]
