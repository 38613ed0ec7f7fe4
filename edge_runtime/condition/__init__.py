"""How the device is: what the machine tells, and what the device tells of itself."""
