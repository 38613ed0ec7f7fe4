"""The platform's services. Each runs alone as `python -m services.NAME`; none imports another."""

from schemas.python import require_python

require_python("causeway")
