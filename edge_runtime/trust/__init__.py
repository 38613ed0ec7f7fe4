"""What a device believes: the service keys, and the signed releases (protocols, sections 1 and 2)."""
