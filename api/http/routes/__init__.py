"""The JSON routes, one module per kind of resource; ``http.app`` includes their ``router``s."""
