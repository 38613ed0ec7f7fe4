"""Which agent this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("causeway")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0.0.0"

AGENT = f"causeway-edge/{VERSION}"
