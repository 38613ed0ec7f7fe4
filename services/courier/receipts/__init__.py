"""What a device may delete: who is told what, when, signed."""
