"""The interfaces of Precedent: the command line, the HTTP service and the search page.

``cli.main.main`` and ``service.create_service`` start them. No other package imports this one.
"""

import engine  # noqa: F401 - before torch: it sets what torch reads as it loads
