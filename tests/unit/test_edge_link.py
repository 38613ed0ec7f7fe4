from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edge_runtime.condition.status import StatusFile, as_text, read_status
from edge_runtime.errors import ConfigError
from edge_runtime.line import Line
from edge_runtime.link.link import Endpoint
from edge_runtime.lock import exclusive


def test_an_address_is_read() -> None:
    assert Endpoint.parse("mqtts://bus.example:9", None, "x") == Endpoint("bus.example", 9, True, None, "x")
    assert Endpoint.parse("mqtts://bus.example", None, None).port == 8883
    assert not Endpoint.parse("mqtt://127.0.0.1:1883", None, None).tls


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://bus.example", "expected mqtts"),
        ("mqtts://", "expected mqtts"),
        ("mqtts://bus.example:port", "Port could not be cast"),
        ("mqtt://bus.example:1883", "plain MQTT is for 127.0.0.1 only"),
        ("mqtts://a..b", "'a..b' is no name of a host: label empty"),
        (f"mqtts://{'a' * 64}.example", "is no name of a host: label"),
        ("mqtts://a\0b", "is no name of a host"),
    ],
)
def test_a_wrong_address_says_what_is_wrong(url, why) -> None:
    with pytest.raises(ConfigError, match=why):
        Endpoint.parse(url, None, None)


@pytest.mark.parametrize("name", [".x", "a..b", "a\0b"])
def test_a_wrong_name_for_the_certificate_is_refused_when_it_is_read(name) -> None:
    with pytest.raises(ConfigError, match=r"read tls_hostname .* is no name of a host"):
        Endpoint.parse("mqtts://bus.example", None, name)


@pytest.mark.parametrize("host", ["[::1]", "[fe80::1%25eth0]", "10.0.0.1", "b\u00fccher.example", "bus.example."])
def test_every_name_that_a_host_may_have_is_taken(host) -> None:
    assert Endpoint.parse(f"mqtts://{host}", None, "b\u00fccher.example").port == 8883


async def test_a_hello_that_fails_ends_the_conversation_loudly() -> None:
    premises = SimpleNamespace(
        outbox=None,
        inbox=None,
        identity=None,
        clock=SimpleNamespace(now=None),
        keyring=None,
        dispatcher=None,
        report=None,
        granted=None,
    )
    line = Line(premises)  # type: ignore[arg-type]

    async def forever() -> None:
        await asyncio.Event().wait()

    async def connected() -> None:
        line._up()
        await forever()

    line.trust = SimpleNamespace(run=forever)  # type: ignore[assignment]
    line.postman.run = forever  # type: ignore[method-assign]
    line.link.run = connected  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup) as failure:
        async with asyncio.timeout(10):
            await line.run()
    assert isinstance(failure.value.exceptions[0], AttributeError)


def test_the_agent_imports_nothing_heavy() -> None:
    code = "import sys, edge_runtime.cli, edge_runtime.agent, edge_runtime.handlers as h, importlib\n"
    code += "[importlib.import_module(p.split(':')[0]) for p in h.PARTS]\n"
    code += "print([m for m in ('numpy', 'onnxruntime', 'tuf', 'securesystemslib', 'sklearn', 'zstandard', 'torch', "
    code += "'typer', 'rich', 'structlog', 'paho') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_a_folder_has_one_agent(tmp_path) -> None:
    path = tmp_path / "state" / "agent.lock"
    with exclusive(path), pytest.raises(ConfigError, match=f"process {os.getpid()}"), exclusive(path):
        pass
    with exclusive(path):
        pass


def test_status_is_written_on_news_and_told_to_people(tmp_path) -> None:
    path = tmp_path / "status.json"
    with pytest.raises(ConfigError, match="causeway-edge run"):
        read_status(path)
    file = StatusFile(path)
    news = {"pid": os.getpid(), "fleet": "a", "device": "b", "connected": False, "problem": "no answer"}
    file.write(news)
    path.write_text(json.dumps({"kept": True}))
    file.write(dict(news))
    assert json.loads(path.read_text()) == {"kept": True}
    file.write(news | {"problems": ["the disk is full"]})
    status = read_status(path)
    assert status["running"]
    text = as_text(status)
    assert "a/b: not connected (no answer)" in text
    assert "the disk is full" in text
    ways = {"control": {"transport": "wait", "reason": "offline for 90 s"}}
    carriers = {"transport": "wait", "reason": "offline for 0 s", "carried": {"fragments": 0}}
    text = as_text(
        status | {"outbox": {"superseded": 4}, "carriers": carriers, "figures": {"explanation": {"ways": ways}}}
    )
    assert "4 replaced by newer ones" in text
    assert "wait: offline for 90 s" in text
    path.write_text("{")
    with pytest.raises(ConfigError):
        read_status(path)


def test_status_tells_of_a_quarantine_and_what_to_do() -> None:
    held = {"since": "2030-01-01T00:00:00Z", "message": "two letters have number 3"}
    status = {"running": True, "fleet": "a", "device": "b", "connected": True}
    text = as_text(status | {"suspended": held})
    assert "a/b: connected, in quarantine\n  quarantine    since 2030-01-01T00:00:00Z: two letters have" in text
    assert "`causeway device release b --fleet a`" in text
    assert "quarantine" not in as_text(status | {"suspended": None})
