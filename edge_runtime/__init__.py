"""The runtime on a device: stores, forwards, verifies, installs, infers and trains. Never imports the platform."""

import os

from schemas.python import require_python

require_python("causeway-edge")

# ONNX Runtime 1.29 and later report to their maker unless this is set before the first import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
