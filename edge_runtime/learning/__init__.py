"""Federated learning on the device: estimators, local training and the handler of round letters."""
