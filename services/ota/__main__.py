"""`python -m services.ota`."""

from services.kit.service import main
from services.ota.app import wire

if __name__ == "__main__":
    main("ota", wire)
