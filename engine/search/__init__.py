"""Search: from a query image to ranked hits, with evidence of how they were found."""
