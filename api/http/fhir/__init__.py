"""Answers in FHIR R4."""
