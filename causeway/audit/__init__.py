"""A separate look at the promise: nothing lost, nothing applied twice. Shares no code with what delivers.

`python -m causeway.audit --state FOLDER OUTBOX...` reads the devices' outboxes, the stream IN and the services' own
ledgers, and compares them.
"""
