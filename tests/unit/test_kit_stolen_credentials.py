"""What a stolen credential of one service must not reach: the verbs, consumers and secrets of the others."""

from __future__ import annotations

import nkeys
import pytest

from services.kit.credentials import NKey, Permissions, UserClaims, decode_jwt, user_jwt
from services.kit.folder import SERVICES
from services.kit.permissions import auditor_permissions, operator_permissions, service_permissions
from tests.support.subjects import covers

DURABLES = {
    "UP": {"courier": "courier"},
    "IN": {
        "registry-enrol": "registry",
        "registry-event": "registry",
        "ota-report": "ota",
        "scheduler-result": "scheduler",
        "aggregator-update": "aggregator",
    },
}


def may_publish(permissions: Permissions, subject: str) -> bool:
    allowed = any(covers(pattern, subject) for pattern in permissions.publish)
    return allowed and not any(covers(pattern, subject) for pattern in permissions.forbidden)


def everyone() -> dict[str, Permissions]:
    found = {name: service_permissions(name) for name in SERVICES}
    return found | {"operator": operator_permissions(), "auditor": auditor_permissions()}


@pytest.mark.parametrize("verb", ["token", "revoke"])
def test_only_the_operator_may_ask_the_registry_for_tokens_or_revocations(verb: str) -> None:
    able = {name for name, permissions in everyone().items() if may_publish(permissions, f"cw.rpc.registry.{verb}")}
    assert able == {"operator"}


def test_only_the_operator_may_ask_the_depot_to_publish() -> None:
    able = {name for name, permissions in everyone().items() if may_publish(permissions, "cw.rpc.depot.publish")}
    assert able == {"operator"}


@pytest.mark.parametrize(("stream", "durable"), [(s, d) for s, owners in DURABLES.items() for d in owners])
def test_a_durable_consumer_is_touched_by_its_service_alone(stream: str, durable: str) -> None:
    subjects = (
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}",
        f"$JS.API.CONSUMER.CREATE.{stream}.{durable}.cw.in.report.>",
        f"$JS.API.CONSUMER.DURABLE.CREATE.{stream}.{durable}",
        f"$JS.ACK.{stream}.{durable}.1.7.7.1.0",
    )
    for subject in subjects:
        able = {name for name, permissions in everyone().items() if may_publish(permissions, subject)}
        # The courier owns both streams.
        assert able - {"courier"} == {DURABLES[stream][durable]} - {"courier"}, subject


@pytest.mark.parametrize("stream", ["IN", "UP", "OUT", "EVENTS", "KV_devices", "KV_tokens"])
def test_consumers_are_deleted_by_the_owner_of_their_stream_alone(stream: str) -> None:
    subject = f"$JS.API.CONSUMER.DELETE.{stream}.x"
    assert len([name for name, permissions in everyone().items() if may_publish(permissions, subject)]) == 1


def test_what_is_forbidden_stands_in_the_jwt_beside_what_is_allowed() -> None:
    account, user = NKey.generate(nkeys.PREFIX_BYTE_ACCOUNT), NKey.generate(nkeys.PREFIX_BYTE_USER)
    permissions = Permissions(("a.>",), ("b.>",), forbidden=("a.secret",))
    claims = decode_jwt(user_jwt(account, UserClaims("someone", user.public, permissions, issued_at=0)))
    assert claims["nats"]["pub"] == {"allow": ["a.>"], "deny": ["a.secret"]}
