"""Models on their way in: checked against the signed release, tried in a worker, switched at one commit point."""
