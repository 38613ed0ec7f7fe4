"""`python -m services.scheduler`."""

from services.kit.service import main
from services.scheduler.app import wire

main("scheduler", wire)
