"""``python -m campaigns``: the long forms of all campaigns, one after another."""

from __future__ import annotations

import pkgutil
import sys

import campaigns

from .report import all_of

_PARTS = frozenset({"__main__", "report"})

if __name__ == "__main__":
    found = sorted(module.name for module in pkgutil.iter_modules(campaigns.__path__))
    sys.exit(
        all_of([f"campaigns.{name}" for name in found if name[0] != "_" and name not in _PARTS])
    )
