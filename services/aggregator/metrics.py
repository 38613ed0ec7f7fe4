"""Figures of the aggregator."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

# Gauges keep their name as it is; a counter would be exposed as `..._total`.
ROUNDS_COMPLETED = Gauge("training_rounds_completed", "Rounds closed since this process started.")
AGGREGATION_TIME = Histogram(
    "aggregation_time_seconds", "From the last update of a round to its weights being stored and cut into pieces."
)
DEVICE_TRAINING_TIME = Histogram(
    "device_training_time_seconds",
    "Local training of accepted updates, as devices report it.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000),
)
UPDATES = Counter("causeway_updates_total", "Updates by what became of them.", ["outcome"])
FAILED_STEPS = Counter("causeway_job_steps_failed_total", "Steps of jobs that failed and are tried again.")
