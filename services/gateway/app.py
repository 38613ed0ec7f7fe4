"""Wires the gateway: the services behind, HTTP in front."""

from __future__ import annotations

import structlog

from services.gateway.http import create_app
from services.gateway.platform import Platform
from services.gateway.server import bind, serve
from services.kit.service import Service

log = structlog.get_logger()


async def wire(service: Service) -> None:
    """Take the port, then answer."""
    http = service.settings.http
    listener = bind(http.host, http.gateway_port)
    service.spawn(serve(create_app(Platform(service.bus)), listener), "http")
    log.info("gateway.listening", url=f"http://{http.host}:{http.gateway_port}")
