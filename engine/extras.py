"""The name of the distribution, and the command that installs its optional dependencies.

The distribution is not named ``precedent`` like the command, as that name is taken on PyPI.
"""

__all__ = ["DISTRIBUTION", "install_command"]

DISTRIBUTION = "precedent-imaging"


def install_command(extra: str) -> str:
    """The pip command that installs ``extra``, one of the project's optional dependencies."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
