"""Instances pushed by a PACS: ``storescp.StoreScp`` receives them, ``inbox.Inbox`` stores them."""
