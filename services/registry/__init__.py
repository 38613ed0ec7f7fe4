"""Who exists, what it can do, is it alive: enrolment, credentials, presence and telemetry."""
