"""Evaluation: measures of retrieval and OOD detection, and reports of them."""
