"""``python -m api`` runs the command line, as ``precedent`` does."""

from api.cli.main import main

if __name__ == "__main__":
    main()
