"""The platform's services. Each runs alone as `python -m services.NAME`; none imports another."""
