"""Configuration of the one daemon, with the reason of each value (design, section 6), and finding its program."""

from __future__ import annotations

import shutil
from pathlib import Path

from services.kit.errors import SettingsError
from services.kit.folder import StateFolder
from services.kit.settings import BusSettings

_TEMPLATE = """\
# Written by `causeway init`; `causeway up` starts nats-server with it.
server_name: causeway
listen: "{host}:{nats_port}"
# 5 MB to a device at 200 kB/s is cut by the default of 10 s.
write_deadline: "60s"
# A service that pulls 256 letters of 64 KiB has 16 MB under way, and whoever exceeds this is cut off.
max_pending: 64MB
# A larger publish closes the connection; every program refuses it before. Over MQTT only newer servers enforce it
# (their issue 7439), so the streams that devices write to have a bound of their own.
max_payload: 1MB
# The JWT of a service names each of its subjects and is part of its first line.
max_control_line: 64KB
max_connections: 70000
# Of 10,000 devices that return at one moment the last is served after 10 s or more. Whoever is sent away before shakes
# hands again, and the queue only grows; so this and the time for TLS are longer than the 45 s that a device waits.
authorization {{ timeout: 60 }}
pid_file: "{pid}"
# No log_file: what it writes names client ids, so it goes to standard error, and `causeway up` takes them out.
{tls}
operator: {operator}
system_account: {system}
resolver: {{ type: full, dir: "{resolver}", allow_delete: true, interval: "2m" }}
resolver_preload: {{
  {system}: {system_jwt}
  {account}: {account_jwt}
}}
jetstream {{ store_dir: "{store}", max_memory_store: 1GB, max_file_store: 100GB }}
mqtt {{
  listen: "{host}:{mqtt_port}"
  {mqtt_tls}
}}
"""
_TLS = 'tls {{ cert_file: "{ca}/server.pem", key_file: "{ca}/server.key", timeout: 60 }}'


def find_nats_server() -> str:
    """Path of the program.

    Raises:
        SettingsError: if it is not installed.
    """
    found = shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin:/usr/local/sbin:/usr/local/bin")
    if found is None:
        raise SettingsError(
            "start the bus: nats-server is not installed; on Debian and Ubuntu: `apt-get install nats-server`, "
            "elsewhere see https://github.com/nats-io/nats-server/releases (2.9.10 or newer)"
        )
    return found


def collector(bus: BusSettings) -> dict[str, str]:
    """How Go's collector shall keep the memory of nats-server, as it reads it from its environment."""
    bound = {"GOMEMLIMIT": f"{bus.memory_mb}MiB"} if bus.memory_mb else {}
    return {"GOGC": str(bus.gc_percent)} | bound


def write_config(
    state: StateFolder,
    bus: BusSettings,
    *,
    operator_jwt: str,
    system: tuple[str, str],
    account: tuple[str, str],
) -> Path:
    """Write `nats.conf`; `system` and `account` are pairs of public key and JWT."""
    tls = _TLS.format(ca=state.ca) if bus.tls else ""
    text = _TEMPLATE.format(
        host=bus.host,
        nats_port=bus.nats_port,
        mqtt_port=bus.mqtt_port,
        pid=state.run / "nats-server.pid",
        tls=tls,
        mqtt_tls=tls,
        operator=operator_jwt,
        system=system[0],
        system_jwt=system[1],
        account=account[0],
        account_jwt=account[1],
        resolver=state.nats_data / "accounts",
        store=state.nats_data / "jetstream",
    )
    state.nats_conf.write_text(text)
    state.nats_conf.chmod(0o600)
    return state.nats_conf
