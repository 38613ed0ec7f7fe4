"""`python -m services.courier`."""

from services.courier.app import wire
from services.kit.service import main

main("courier", wire)
