"""Rollouts: which device is to install which release, when, and what came of it. Holds no release key."""
