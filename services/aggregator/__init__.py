"""Federated learning: jobs, rounds, the ledger of updates and their exact sum."""
