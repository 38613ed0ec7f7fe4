"""`causeway init`: keys, credentials, certificates, trust and configuration of a new platform."""

from __future__ import annotations

import base64
import os
import socket
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

import nkeys
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from ulid import ULID

from causeway.platform.authority import write_authority
from causeway.platform.nats_server import write_config
from causeway.release.repository import create_repository
from schemas.envelope import Signer
from schemas.trust import SIGNED_KINDS, ServiceKey, ServicesDocument
from services.kit.credentials import (
    AccountClaims,
    NKey,
    Permissions,
    UserClaims,
    account_jwt,
    creds_text,
    operator_jwt,
    user_jwt,
)
from services.kit.errors import RefusedError
from services.kit.folder import SERVICES, StateFolder, make_private, write_private
from services.kit.keys import LetterKey, write_letter_key
from services.kit.neighbours import write_neighbours_authority
from services.kit.permissions import (
    AUDITOR,
    OPERATOR,
    SYSTEM_USER,
    auditor_permissions,
    operator_permissions,
    service_permissions,
)
from services.kit.settings import BusSettings, HttpSettings, Settings, StoreSettings

SEALED_SERVICE = "courier"
"""Bundles are sealed to it."""
BACKDATE_S = 60


@dataclass(frozen=True, slots=True)
class InitOptions:
    """What the operator may choose; ports of None are the defaults, 0 takes a free one."""

    host: str = "127.0.0.1"
    tls: bool = True
    fleet: str = "home"
    nats_port: int | None = None
    mqtt_port: int | None = None
    gateway_port: int | None = None
    free_ports: bool = False
    store: StoreSettings = field(default_factory=StoreSettings)


def init_platform(state: StateFolder, options: InitOptions) -> Settings:
    """Write everything that a platform needs before it starts.

    Raises:
        RefusedError: if the folder holds a platform already.
        pydantic.ValidationError: if the options do not fit, as TLS off on a network address.
    """
    if state.settings.exists():
        raise RefusedError(
            f"initialise {state.root}: there is a platform already; use another folder with --state, "
            "or start this one with `causeway up`"
        )
    ports = _Ports(options)
    settings = Settings(
        platform=str(ULID()),
        fleet=options.fleet,
        bus=BusSettings(
            host=options.host,
            nats_port=ports.pick(options.nats_port, 4222),
            mqtt_port=ports.pick(options.mqtt_port, 8883 if options.tls else 1883),
            tls=options.tls,
        ),
        store=options.store,
        http=HttpSettings(
            host="127.0.0.1",
            gateway_port=ports.pick(options.gateway_port, 8080),
            health_ports={service: ports.free() for service in SERVICES},
        ),
    )
    for folder in (state.root, state.root / "keys", state.logs, state.run, state.nats_data, state.artifacts):
        make_private(folder)
    write_authority(state, options.host)
    _write_bus(state, settings)
    document = _write_letter_keys(state, settings)
    write_neighbours_authority(state, datetime.now(UTC))
    create_repository(state, settings.platform, document)
    # Last: its presence says that the folder is complete.
    write_private(state.settings, settings_toml(settings).encode())
    return settings


def settings_toml(settings: Settings) -> str:
    """The settings as a TOML file with a word on each part."""
    bus, store, http = settings.bus, settings.store, settings.http
    lines = [
        "# Settings of this platform. CAUSEWAY_BUS__HOST and the like override them.",
        f'platform = "{settings.platform}"  # part of every letter; never change it',
        f'fleet = "{settings.fleet}"',
        "",
        "[bus]",
        f'host = "{bus.host}"',
        f"nats_port = {bus.nats_port}",
        f"mqtt_port = {bus.mqtt_port}",
        f"tls = {str(bus.tls).lower()}  # may be off on 127.0.0.1 only",
        "",
        "[store]",
        f'kind = "{store.kind}"  # folder or s3',
    ]
    if store.folder is not None:
        lines.append(f'folder = "{store.folder}"')
    if store.kind == "s3":
        lines += [
            f'endpoint = "{store.endpoint}"',
            f'bucket = "{store.bucket}"',
            f"secure = {str(store.secure).lower()}",
            f'credentials = "{store.credentials}"  # access key, then secret, a line each',
        ]
    lines += ["", "[http]", f'host = "{http.host}"', f"gateway_port = {http.gateway_port}", "", "[http.health_ports]"]
    lines += [f"{service} = {port}" for service, port in http.health_ports.items()]
    return "\n".join(lines) + "\n"


def _write_bus(state: StateFolder, settings: Settings) -> None:
    make_private(state.bus_keys)
    issued = int(time.time()) - BACKDATE_S
    operator = NKey.generate(nkeys.PREFIX_BYTE_OPERATOR)
    system = NKey.generate(nkeys.PREFIX_BYTE_ACCOUNT)
    account = NKey.generate(nkeys.PREFIX_BYTE_ACCOUNT)
    for name, key in (("operator", operator), ("system", system), ("account", account)):
        write_private(state.bus_keys / f"{name}.nk", key.seed_text)
    make_private(state.root / "creds")
    users = {service: service_permissions(service) for service in SERVICES}
    users |= {OPERATOR: operator_permissions(), AUDITOR: auditor_permissions()}
    for user, permissions in users.items():
        write_user(state, account, user, permissions, issued)
    watching = ("$SYS.ACCOUNT.*.DISCONNECT", "$SYS.SERVER.*.CLIENT.AUTH.ERR", f"_INBOX_{SYSTEM_USER}.>")
    write_user(state, system, SYSTEM_USER, Permissions(("$SYS.REQ.CLAIMS.UPDATE",), watching), issued)
    write_config(
        state,
        settings.bus,
        operator_jwt=operator_jwt(operator, system.public, issued),
        system=(system.public, account_jwt(operator, AccountClaims("SYS", system.public, issued, jetstream=False))),
        account=(
            account.public,
            account_jwt(operator, AccountClaims("causeway", account.public, issued, jetstream=True)),
        ),
    )


def write_user(
    state: StateFolder, account: NKey, name: str, permissions: Permissions, issued: int, expires: int | None = None
) -> None:
    """Write credentials of a user of an account, valid from `issued` on, in seconds since 1970."""
    key = NKey.generate(nkeys.PREFIX_BYTE_USER)
    jwt = user_jwt(account, UserClaims(name, key.public, permissions, issued, expires))
    write_private(state.creds(name), creds_text(jwt, key.seed_text))


def _write_letter_keys(state: StateFolder, settings: Settings) -> ServicesDocument:
    keys = []
    for service, kinds in SIGNED_KINDS.items():
        seal_seed = os.urandom(32) if service == SEALED_SERVICE else None
        key = LetterKey(Signer.generate(), 1, seal_seed)
        write_letter_key(state.service_key(service), key)
        keys.append(
            ServiceKey(
                keyid=key.signer.keyid,
                public=base64.b64encode(key.signer.public_key).decode(),
                service=service,
                kinds=list(kinds),
                generation=key.generation,
                seal=None if key.seal_key is None else _public(key.seal_key),
            )
        )
    return ServicesDocument(platform=settings.platform, keys=keys)


def _public(key: X25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


class _Ports:
    """Hands out ports; keeps free ones bound until all are chosen, so that none is handed out twice."""

    def __init__(self, options: InitOptions) -> None:
        self._host = options.host
        self._all_free = options.free_ports
        self._held: list[socket.socket] = []

    def pick(self, chosen: int | None, default: int) -> int:
        if chosen:
            return chosen
        return self.free() if self._all_free or chosen == 0 else default

    def free(self) -> int:
        held = socket.socket()
        held.bind(("127.0.0.1", 0))
        self._held.append(held)
        port: int = held.getsockname()[1]
        return port

    def __del__(self) -> None:
        for held in self._held:
            held.close()
