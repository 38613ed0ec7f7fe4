"""The `causeway` command: one module per noun."""
