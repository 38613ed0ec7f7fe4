"""The contract: topics, messages and envelopes that devices and services share. Imports nothing of the rest."""
