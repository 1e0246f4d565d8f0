"""SMART App Launch: an EHR opens the page, for somebody whom it knows and a study that is open."""
