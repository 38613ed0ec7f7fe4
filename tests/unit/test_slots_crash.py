"""An installation killed before any of its effects leaves a device that serves, and that finishes at its next start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.ota import slots as slots_module
from edge_runtime.ota.install import OtaHandler
from edge_runtime.ota.installation import Pace
from edge_runtime.ota.slots import Slots, digest_of
from tests.support.device import Bench
from tests.support.models import Made, make_release

QUICK = Pace(trust_waits_s=(0,), fetch_retry_s=0, gate_poll_s=0)


class PowerCut(BaseException):
    """Nothing after this happened."""


class Fuse:
    """Lets so many effects happen, then cuts the power before the next."""

    def __init__(self) -> None:
        self.left: int | None = None

    def __call__(self) -> None:
        if self.left is None:
            return
        if self.left == 0:
            raise PowerCut
        self.left -= 1


def wire(bench: Bench, fuse: Fuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fuse before every effect on disk, in the outbox and in the worker."""

    def before(function: Callable[..., Any]) -> Callable[..., Any]:
        def fused(*args: Any, **kwargs: Any) -> Any:
            fuse()
            return function(*args, **kwargs)

        return fused

    def torn(path: Path, data: bytes, mode: int = 0o600) -> None:
        try:
            fuse()
        except PowerCut:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.new").write_bytes(data[: len(data) // 2])
            raise
        whole(path, data, mode)

    whole = slots_module.write_durable
    monkeypatch.setattr(slots_module, "write_durable", torn)
    for name in ("_move", "sync_folder"):
        monkeypatch.setattr(slots_module, name, before(getattr(slots_module, name)))
    for owner, name in ((bench.sender, "send"), (bench.library, "call"), (bench.library, "fetch")):
        monkeypatch.setattr(owner, name, before(getattr(owner, name)))


def serving(bench: Bench, *allowed: Made) -> None:
    """What the commit point names must be there, whole."""
    slots = Slots(bench.context.folder.slots)
    digest = slots.load("digits").digest
    assert digest in {made.digest for made in allowed}
    assert digest_of(slots.file("digits", digest))[0] == digest


async def settle(handler: OtaHandler) -> None:
    async with asyncio.timeout(30):
        await handler.settled()
    for run in handler._runs.values():
        assert run.exception() is None or isinstance(run.exception(), PowerCut)


async def test_power_may_fail_before_any_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = 0
    while True:
        with monkeypatch.context() as patch:
            bench, fuse = Bench(tmp_path / str(cuts)), Fuse()
            wire(bench, fuse, patch)
            old = bench.publish(make_release(2.0))
            new = bench.publish(make_release(3.0, version="1.1.0", seq=2))
            first = OtaHandler(bench.context, QUICK)
            await first.handle(bench.assign(old))
            await settle(first)

            letter = bench.assign(new)
            fuse.left = cuts
            handler = OtaHandler(bench.context, QUICK)
            try:
                await handler.handle(letter)
            except PowerCut:
                pass
            else:
                await settle(handler)
            finished = fuse.left > 0
            fuse.left = None
            serving(bench, old, new)

            # The next start: the agent resumes, and hands the letter over again.
            handler = OtaHandler(bench.context, QUICK)
            await handler.resume()
            await handler.handle(letter)
            await settle(handler)
            serving(bench, new)
            assert bench.sender.steps == ["accept/ok", "confirm/ok"] * 2
            assert bench.sender.reports[-1].running_sha256 == new.digest
            assert Slots(bench.context.folder.slots).load("digits").activations == 2
        if finished:
            break
        cuts += 1
    assert cuts > 20


async def test_a_model_that_takes_the_device_down_is_left_after_its_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    old, new = bench.publish(make_release(2.0)), bench.publish(make_release(3.0, version="1.1.0", seq=2))
    handler = OtaHandler(bench.context, QUICK)
    await handler.handle(bench.assign(old))
    await settle(handler)
    loads = 0
    call = bench.library.call

    async def deadly(job: str, params: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        nonlocal loads
        if job == "infer":
            loads += 1
            raise PowerCut
        return await call(job, params, timeout_s=timeout_s)

    monkeypatch.setattr(bench.library, "call", deadly)
    handler = OtaHandler(bench.context, QUICK)
    await handler.handle(bench.assign(new))
    await settle(handler)
    for _ in range(8):
        handler = OtaHandler(bench.context, QUICK)
        await handler.resume()
        await settle(handler)
    assert loads == 3
    assert bench.sender.steps[-1] == "confirm/failed/tries_exhausted"
    assert bench.sender.reports[-1].running_sha256 == old.digest
    serving(bench, old)
