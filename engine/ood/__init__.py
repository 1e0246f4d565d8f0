"""Whether a query lies outside what the model knows."""
