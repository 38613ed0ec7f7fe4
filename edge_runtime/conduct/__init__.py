"""How the device behaves: the policy tables, what they are asked with, and `causeway-edge explain`."""
