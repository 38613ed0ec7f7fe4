"""`python -m services.depot`."""

from __future__ import annotations

from services.depot.app import wire
from services.kit.service import main

main("depot", wire)
