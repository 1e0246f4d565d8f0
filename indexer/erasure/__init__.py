"""Erasing: what was deleted is in no file of the data folder any more; a signed report says so."""
