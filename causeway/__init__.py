"""The operator's side: SDK, command line, and the platform on one machine."""
