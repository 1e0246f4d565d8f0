"""Erasing: what was deleted is in no file of the data folder any more, and a signed report says so."""
