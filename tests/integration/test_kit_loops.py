"""Nothing that a service lives on ends in silence: its connection, its loops, the list of devices."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence

import pytest
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from schemas.envelope import Signer, seal
from schemas.errors import EnvelopeError
from services.kit.bus import Bus, connect
from services.kit.devices import REFUSED, DeviceBook
from services.kit.errors import PlatformError, SettingsError, UnreachableError
from services.kit.folder import write_private
from services.kit.records import RegistryKeys, seal_record
from services.kit.service import Service
from services.kit.streams import ensure_owned
from tests.support.platform import LivePlatform, until
from tests.support.raw_device import RawDevice
from tests.support.records import put_records, registry_signer

LIMIT_S = 20
REASONS = {"bad_envelope": 3, "unknown_key": 1, "wrong_source": 2, "replayed": 1, "bad_identifier": 1}
"""How often each of the forgeries below is refused."""


async def serve(live: LivePlatform, wire: Callable[[Service], Awaitable[None]]) -> None:
    bus = await connect(live.state, live.settings, "gateway")
    live.settings.http.health_ports["gateway"] = 0
    async with asyncio.timeout(LIMIT_S):
        await Service("gateway", live.state, live.settings, bus).run(wire)


async def test_a_connection_that_ended_for_good_ends_its_service(live: LivePlatform) -> None:
    async def wire(service: Service) -> None:
        # As nats-py does at an error of the server that it does not know.
        service.spawn(service.bus.nc._process_err("'Unknown Protocol Operation'"), "error")

    with pytest.raises(UnreachableError, match="ended for good"):
        await serve(live, wire)


async def test_a_loop_that_a_library_cancelled_ends_its_service(live: LivePlatform) -> None:
    async def loop() -> None:
        raise asyncio.CancelledError

    async def wire(service: Service) -> None:
        service.spawn(loop(), "letters")

    with pytest.raises(PlatformError, match="run letters: it was cancelled"):
        await serve(live, wire)


async def test_a_recovery_that_breaks_ends_its_service(live: LivePlatform) -> None:
    async def broken() -> None:
        raise ValueError("nobody foresaw this")

    async def wire(service: Service) -> None:
        service.bus.on_reconnect(broken)
        await service.bus.recovered()

    with pytest.raises(ValueError, match="nobody foresaw this"):
        await serve(live, wire)


async def test_a_service_that_waited_for_a_frozen_server_is_heard_once_it_says_that_it_is_ready(
    live: LivePlatform,
) -> None:
    server = live.processes["nats-server"]
    answers: list[bytes] = []

    async def answer(message: Msg) -> None:
        await message.respond(b"heard")

    async def ask(service: Service, logged: Sequence[Mapping[str, object]]) -> None:
        try:
            await until(
                lambda: any(line["event"] == "service.not_heard" for line in logged), "the service to wait in vain"
            )
        finally:
            server.send_signal(signal.SIGCONT)
        await until(lambda: not service.waiting_for(), "the service to be ready")
        operator = await connect(live.state, live.settings, "operator")
        try:
            answers.append((await operator.nc.request("cw.rpc.gateway.hear", timeout=5)).data)
        finally:
            await operator.close()
        signal.raise_signal(signal.SIGTERM)

    with capture_logs() as logged:

        async def wire(service: Service) -> None:
            await service.bus.nc.subscribe("cw.rpc.gateway.hear", cb=answer)
            server.send_signal(signal.SIGSTOP)
            service.spawn(ask(service, logged), "ask")

        await serve(live, wire)
    assert answers == [b"heard"]


async def write(bus: Bus, key: str, value: bytes) -> None:
    await (await bus.bucket("devices")).put(key, value)


async def test_what_the_registry_did_not_sign_changes_nothing(live: LivePlatform) -> None:
    registry = await connect(live.state, live.settings, "registry")
    ota = await connect(live.state, live.settings, "ota")
    book = DeviceBook(RegistryKeys(live.state).open_record)
    one, two, three = (RawDevice(live, f"cam-{number}") for number in (1, 2, 3))
    signer = registry_signer(live.state)
    refused = {reason: REFUSED.labels(reason)._value.get() for reason in REASONS}
    try:
        await put_records(live.state, registry, one.record())
        await book.follow(ota)
        genuine = book.get(one.address)
        assert genuine is not None

        forged = RawDevice(live, "cam-1").record().model_copy(update={"serial": 2**53})
        older = genuine.model_copy(update={"serial": genuine.serial - 1, "standing": "revoked"})
        recall = seal(forged.model_dump_json().encode(), signer)
        for value in (
            b'{"fleet":"home"}',
            forged.model_dump_json().encode(),
            seal_record(forged, Signer.generate()),
            seal_record(two.record(), signer),
            seal_record(older, signer),
            recall,
        ):
            await write(registry, "home.cam-1", value)
        await write(registry, "nobody", seal_record(forged, signer))
        await write(registry, "home.cam-3", seal_record(forged, signer))
        await put_records(live.state, registry, two.record())
        assert await book.wait_verifier(two.address, LIMIT_S) is not None
        assert book.get(one.address) == genuine
        assert book.verifier(one.address) is not None
        assert book.get(three.address) is None
        assert {reason: REFUSED.labels(reason)._value.get() - refused[reason] for reason in REASONS} == REASONS

        revoked = genuine.model_copy(update={"standing": "revoked"})
        await put_records(live.state, registry, revoked, two.record("revoked"))

        async def cut() -> bool:
            return book.verifier(two.address) is None

        await until(cut, "the revocation")
        assert book.verifier(one.address) is None
    finally:
        book.close()
        await ota.close()
        await registry.close()


async def test_a_new_key_of_the_registry_needs_no_restart(live: LivePlatform) -> None:
    keys = RegistryKeys(live.state)
    new, device = Signer.generate(), RawDevice(live, "cam-1")
    sealed = seal_record(device.record(), new)
    with pytest.raises(EnvelopeError, match="no signature by a known key"):
        keys.open_record(sealed, device.address)
    with pytest.raises(SettingsError, match="does not name it as the registry's"):
        keys.require(new)
    path = live.state.trust / "services.json"
    document = json.loads(path.read_bytes())
    [present] = [key for key in document["keys"] if key["service"] == "registry"]
    public = base64.b64encode(new.public_key).decode()
    document["keys"].append(present | {"keyid": new.keyid, "public": public, "generation": 2})
    write_private(path, json.dumps(document).encode())
    assert keys.open_record(sealed, device.address).address == device.address
    genuine = seal_record(device.record(), registry_signer(live.state))
    assert keys.open_record(genuine, device.address).address == device.address


async def test_without_the_registrys_key_no_service_starts(live: LivePlatform) -> None:
    (live.state.trust / "services.json").unlink()
    with pytest.raises(SettingsError, match=r"registry's public key .* `causeway init` writes it"):
        RegistryKeys(live.state)


async def test_following_again_leaves_no_watch_behind(live: LivePlatform) -> None:
    registry = await connect(live.state, live.settings, "registry")
    ota = await connect(live.state, live.settings, "ota")
    book = DeviceBook(RegistryKeys(live.state).open_record)
    try:
        await ensure_owned(registry.js, "registry")
        await book.follow(ota)
        watches = len(ota.nc._subs)
        for _ in range(3):
            await ota._recover()
        assert len(ota.nc._subs) == watches
    finally:
        book.close()
        await ota.close()
        await registry.close()
