"""Bundles that people carry: a folder, as on a USB stick, between devices without a network and the platform."""
