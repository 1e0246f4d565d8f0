"""What a PACS sends here by itself. ``storescp.StoreScp`` receives it, ``inbox.Inbox`` keeps it."""
