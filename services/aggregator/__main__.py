"""`python -m services.aggregator`."""

from services.aggregator.app import wire
from services.kit.service import main

if __name__ == "__main__":
    main("aggregator", wire)
