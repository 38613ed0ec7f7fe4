"""The runtime on a device: stores, forwards, verifies, installs, infers and trains. Never imports the platform."""
