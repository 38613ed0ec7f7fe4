"""The only HTTP: what the platform knows, for people and scripts. It reads and changes nothing."""
