"""``python -m api`` is ``precedent``."""

from api.cli.main import main

if __name__ == "__main__":
    main()
