"""The HTTP application: routes over `Platform`, and errors as JSON `{"error": {"code", "message"}}`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from schemas.ids import Identifier
from schemas.wording import sentence
from services.gateway import metrics, pages
from services.gateway.platform import Platform
from services.kit.api.aggregator import JobView
from services.kit.api.ota import RolloutView
from services.kit.api.registry import DeviceView
from services.kit.api.scheduler import TaskView
from services.kit.errors import PlatformError

log = structlog.get_logger()

VERSION = "0.1.0"
DESCRIPTION = """What a Causeway platform knows: devices and how they are doing, rollouts, tasks and learning jobs.

Everything here is read-only. Times are UTC in ISO 8601; a reading that a device did not give is `null`, never `0`.
Errors are `{"error": {"code", "message"}}` with a sentence that says the next step."""

_STATUS = {
    "not_found": HTTPStatus.NOT_FOUND,
    "refused": HTTPStatus.FORBIDDEN,
    "malformed": HTTPStatus.UNPROCESSABLE_ENTITY,
    "bad_identifier": HTTPStatus.UNPROCESSABLE_ENTITY,
    "unreachable": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""By the code of a PlatformError; anything else is the service's failure, a bad gateway."""

_ERRORS: dict[int | str, dict[str, Any]] = {
    int(status): {"model": pages.ErrorAnswer, "description": description}
    for status, description in (
        (HTTPStatus.NOT_FOUND, "Nothing has this name."),
        (HTTPStatus.UNPROCESSABLE_ENTITY, "A parameter does not fit."),
        (HTTPStatus.BAD_GATEWAY, "A service failed."),
        (HTTPStatus.SERVICE_UNAVAILABLE, "A service does not answer."),
    )
}


def create_app(platform: Platform) -> FastAPI:
    """Build the application; nothing is asked before the first request."""
    app = FastAPI(title="Causeway", version=VERSION, description=DESCRIPTION, responses=_ERRORS)
    _add_routes(app, platform)
    _add_errors(app)

    @app.middleware("http")
    async def measure(request: Request, follow: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.monotonic()
        response = await follow(request)
        # The template and not the path: a series per device would grow without bound.
        route = getattr(request.scope.get("route"), "path", "unknown")
        metrics.REQUESTS.labels(route, str(response.status_code)).inc()
        metrics.SECONDS.labels(route).observe(time.monotonic() - began)
        return response

    return app


def _add_routes(app: FastAPI, platform: Platform) -> None:
    @app.get("/health", tags=["platform"], summary="Whether the platform works")
    async def health(response: Response) -> pages.HealthAnswer:
        """200 while the bus is there, also when a service does not answer (`degraded`); 503 without the bus."""
        answer = pages.health(dict(await platform.services()), connected=platform.connected)
        if answer.status == "unavailable":
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return answer

    @app.get("/api/agents/status", tags=["devices"], summary="How every device is doing")
    async def agents_status(fleet: Identifier | None = None) -> pages.AgentsStatus:
        """One short entry per device, with counts by status."""
        return pages.agents_status(await platform.devices(fleet))

    @app.get("/api/devices", tags=["devices"], summary="Every device")
    async def devices(fleet: Identifier | None = None) -> list[DeviceView]:
        """Standing, capabilities and last heartbeat of each."""
        return await platform.devices(fleet)

    @app.get("/api/devices/{fleet}/{device}", tags=["devices"], summary="One device")
    async def device(fleet: Identifier, device: Identifier) -> DeviceView:
        """404 if nothing of this name ever enrolled."""
        return await platform.device(fleet, device)

    @app.get("/api/rollouts", tags=["models"], summary="Every rollout")
    async def rollouts() -> list[RolloutView]:
        """With the state of each device."""
        return await platform.rollouts()

    @app.get("/api/tasks", tags=["tasks"], summary="The newest tasks")
    async def tasks(
        fleet: Identifier | None = None, limit: Annotated[int, Query(ge=1, le=10_000)] = 200
    ) -> list[TaskView]:
        """With the reasons of their placement and their results."""
        return await platform.tasks(fleet, limit)

    @app.get("/api/jobs", tags=["learning"], summary="Every learning job")
    async def jobs() -> list[JobView]:
        """With their rounds."""
        return await platform.jobs()

    @app.get("/metrics", tags=["platform"], summary="Figures for Prometheus", response_class=Response)
    async def figures() -> Response:
        """Figures of services that do not answer are absent."""
        return Response(await metrics.render(platform), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(PlatformError)
    async def refused(request: Request, error: PlatformError) -> JSONResponse:
        status = _STATUS.get(error.code, HTTPStatus.BAD_GATEWAY)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.warning("request.failed", path=request.url.path, code=error.code, error=str(error))
        return _error(status, error.code, str(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(HTTPStatus.UNPROCESSABLE_ENTITY, "malformed", sentence(error.errors()))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == HTTPStatus.NOT_FOUND:
            message = f"there is no page {request.url.path[:200]}; see /docs"
            return _error(HTTPStatus.NOT_FOUND, "not_found", message)
        return _error(error.status_code, "refused", f"{error.detail}; everything here is read-only, see /docs")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("request.crashed", path=request.url.path, error=repr(error), exc_info=error)
        return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", f"{error!r}; see the gateway's log")


def _error(status: int, code: str, message: str) -> JSONResponse:
    answer = pages.ErrorAnswer(error=pages.ErrorBody(code=code, message=message))
    return JSONResponse(answer.model_dump(), status_code=int(status))
