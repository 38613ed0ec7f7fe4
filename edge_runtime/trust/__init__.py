"""What a device believes: the service keys, and the signed releases."""
