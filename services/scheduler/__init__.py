"""Tasks onto idle devices: placement, leases, results."""
