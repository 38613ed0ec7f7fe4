"""`python -m services.registry`."""

from services.kit.service import main
from services.registry.app import wire

main("registry", wire)
