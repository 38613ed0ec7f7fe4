"""Letters down: in their mailboxes until the device says `got`."""
