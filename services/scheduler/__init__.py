"""Tasks onto idle devices: placement, leases, results (protocols, section 5)."""
