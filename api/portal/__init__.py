"""The search page: what it says, its templates and its style."""
