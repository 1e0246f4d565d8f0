"""The versions of all that is stored: listed, and brought up to this release."""

from indexer.upgrade.bringing import bring_up
from indexer.upgrade.inventory import Outcome, Stored, inventory

__all__ = ["Outcome", "Stored", "bring_up", "inventory"]
