"""Where instances come from. ``opening.SourceSpec`` opens a source; ``base``: what each offers."""
