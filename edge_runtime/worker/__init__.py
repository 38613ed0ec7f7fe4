"""Jobs in a child process, so that the resident one stays small: it alone loads numpy, onnxruntime and tuf."""

from edge_runtime.worker.client import Worker
from edge_runtime.worker.jobs import JOBS

__all__ = ["JOBS", "Worker"]
