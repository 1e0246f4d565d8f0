"""Optional dependencies, and the command that installs them.

The distribution is not named as the command ``precedent`` is: on PyPI that name is somebody else's.
"""

__all__ = ["DISTRIBUTION", "install_command"]

DISTRIBUTION = "precedent-imaging"


def install_command(extra: str) -> str:
    """What adds ``extra``, one of the project's optional dependencies, to an installation."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
