"""Letters on the device: the outbox and what it sends, the inbox and what it admits."""
