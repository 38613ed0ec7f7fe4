"""`python -m services.gateway`."""

from services.gateway.app import wire
from services.kit.service import main

main("gateway", wire)
