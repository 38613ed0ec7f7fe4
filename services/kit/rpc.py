"""Request and reply between services and from the CLI: `cw.rpc.{service}.{verb}`, JSON both ways."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import structlog
from faststream.nats import NatsMessage
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError
from prometheus_client import Counter
from pydantic import BaseModel, ValidationError

from schemas.errors import ContractError
from schemas.topics import rpc_subject
from schemas.wording import problems
from services.kit.bus import Bus
from services.kit.errors import NotFoundError, PlatformError, RefusedError, UnreachableError

log = structlog.get_logger()

Request = TypeVar("Request", bound=BaseModel)
DEFAULT_TIMEOUT_S = 10.0
INBOX = "_INBOX_"
STRAY = Counter("causeway_rpc_stray", "Requests that no caller made, by service and verb.", ["service", "verb"])
_ERRORS: dict[str, type[PlatformError]] = {
    error.code: error for error in (NotFoundError, RefusedError, UnreachableError)
}


class Nothing(BaseModel):
    """A request without arguments."""


Handler = Callable[[Request], Awaitable[Any]]


def serve(bus: Bus, service: str, verb: str, request: type[Request], handler: Handler[Request]) -> None:
    """Answer a verb; instances of a service share the load. Call before `bus.broker.start()`.

    `handler` returns anything that JSON can hold. Its `PlatformError` and `ContractError` become error answers; any
    other exception becomes `internal` and is logged.
    """

    async def answer(message: NatsMessage) -> bytes:
        return await _answer(service, verb, request, handler, message.body or b"", message.reply_to)

    # Without an own name FastStream would merge handlers of one function name.
    answer.__name__ = f"{service}_{verb}"
    bus.broker.subscriber(rpc_subject(service, verb), queue=service)(answer)


async def serve_from_now(
    bus: Bus, service: str, verb: str, request: type[Request], handler: Handler[Request]
) -> Subscription:
    """Like `serve`, of a service that runs already: an instance that stands by must not take a caller's request."""

    async def answer(message: Msg) -> None:
        try:
            await message.respond(await _answer(service, verb, request, handler, message.data, message.reply))
        except NatsError as error:
            log.warning("rpc.not_answered", service=service, verb=verb, error=repr(error))

    return await bus.nc.subscribe(rpc_subject(service, verb), queue=service, cb=answer)


async def _answer(
    service: str, verb: str, request: type[Request], handler: Handler[Request], body: bytes, reply_to: str
) -> bytes:
    if not reply_to.startswith(INBOX):
        # JetStream can be made to send to any subject, but not with an inbox to answer to (decision 0008).
        log.error("rpc.stray", service=service, verb=verb, reply=reply_to[:128])
        STRAY.labels(service, verb).inc()
        return _failure("stray", f"ask {service} to {verb}: a request names an inbox of its sender for the answer")
    try:
        result = await handler(request.model_validate_json(body or b"{}"))
    except ValidationError as error:
        return _failure("malformed", problems(error, "request"))
    except PlatformError as error:
        return _failure(error.code, str(error))
    except ContractError as error:
        return _failure(error.reason, str(error))
    except Exception as error:  # a service answers every request; what it could not foresee is logged whole
        log.exception("rpc.failed", service=service, verb=verb)
        return _failure("internal", f"{service}.{verb} failed: {error!r}; see the service's log")
    return json.dumps({"ok": True, "data": result}, separators=(",", ":")).encode()


async def call(
    bus: Bus, service: str, verb: str, request: BaseModel | None = None, *, timeout_s: float = DEFAULT_TIMEOUT_S
) -> Any:
    """Ask a service.

    Returns:
        What its handler returned.

    Raises:
        UnreachableError: if nobody answers.
        PlatformError: what the service refused, with its code.
    """
    body = (request or Nothing()).model_dump_json().encode()
    try:
        reply = await bus.nc.request(rpc_subject(service, verb), body, timeout=timeout_s)
    except NoRespondersError as error:
        raise UnreachableError(f"ask {service} to {verb}: it does not run; see `causeway up`") from error
    except NatsTimeoutError as error:
        raise UnreachableError(f"ask {service} to {verb}: no answer within {timeout_s:.0f} s") from error
    answer = json.loads(reply.data)
    if answer["ok"]:
        return answer["data"]
    code = answer["error"]["code"]
    raise _ERRORS.get(code, PlatformError)(answer["error"]["message"], code=code)


def _failure(code: str, message: str) -> bytes:
    return json.dumps({"ok": False, "error": {"code": code, "message": message}}).encode()
