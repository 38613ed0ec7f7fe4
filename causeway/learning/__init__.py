"""From weights to a release: export to ONNX, the smoke test's file, and training on one shard alone."""
