"""The operator's side: SDK, command line, and the platform on one machine."""

from schemas.python import require_python

require_python("causeway")
