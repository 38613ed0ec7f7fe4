from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import EdgeError, FetchError, OutboxError
from edge_runtime.ota.install import OtaHandler
from edge_runtime.ota.installation import Pace
from edge_runtime.ota.slots import Slots
from edge_runtime.settings import EdgeSettings, OwnerLimits
from schemas.aggregator import Artifact
from schemas.depot import Want
from schemas.events import DownLetter, Message
from schemas.ota import Assign, Gates
from schemas.registry import Heartbeat
from tests.support.device import SESSION, Bench
from tests.support.models import make_release
from tests.support.platform import eventually

QUICK = Pace(trust_waits_s=(0, 0), fetch_retry_s=0, gate_poll_s=0, disk_retry_s=0)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def carry_out(bench: Bench, letter: DownLetter[Assign]) -> OtaHandler:
    handler = OtaHandler(bench.context, QUICK)
    await handler.handle(letter)
    async with asyncio.timeout(30):
        await handler.settled()
    return handler


async def test_an_assignment_that_agrees_with_the_release_ends_up_serving(bench: Bench) -> None:
    made = bench.publish(make_release(2.0))
    letter = bench.assign(made)
    handler = await carry_out(bench, letter)
    assert bench.sender.steps == ["accept/ok", "confirm/ok"]
    done = bench.sender.reports[-1]
    assert (done.running_sha256, done.revision, done.rollout) == (made.digest, 1, letter.data.rollout)
    assert done.smoke is not None
    assert (done.smoke.passed, done.smoke.samples) == (True, 3)
    [served] = handler.served()
    assert (served.name, served.digest, served.revision) == ("digits", made.digest, 1)
    answer = await handler.infer("digits", [[1, 2, 3, 4]])
    assert answer["outputs"] == {"y": [[2, 4, 6, 8]]}
    assert not list(bench.context.folder.staging.glob("*"))


async def test_the_same_letter_again_has_no_second_effect(bench: Bench) -> None:
    letter = bench.assign(bench.publish(make_release()))
    await carry_out(bench, letter)
    told = len(bench.sender.letters)
    handler = await carry_out(bench, letter)
    await handler.resume()
    await handler.settled()
    assert len(bench.sender.letters) == told


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "a" * 64}, "wrong_digest"),
        ({"length": 7}, "wrong_length"),
        ({"seq": 9}, "wrong_seq"),
        ({"version": "1.0.1"}, "wrong_version"),
        ({"model": "yolo"}, "wrong_model"),
        ({"target": "models/digits/9.9.9/model.onnx"}, "unknown_target"),
    ],
)
async def test_an_assignment_that_the_release_does_not_say_is_refused(
    bench: Bench, changes: dict[str, object], reason: str
) -> None:
    await carry_out(bench, bench.assign(bench.publish(make_release()), **changes))
    assert bench.sender.steps == [f"accept/refused/{reason}"]
    assert bench.sender.reports[0].message
    assert "smoke" not in bench.library.calls


async def test_trust_that_an_assignment_overtook_is_asked_for(bench: Bench) -> None:
    bench.library.lookup_errors = ["unknown_target", "missing_metadata"]
    made = bench.publish(make_release())
    await carry_out(bench, bench.assign(made))
    assert bench.sender.steps[-1] == "confirm/ok"
    assert [kind for kind, _ in bench.sender.parcels] == ["want", "want"]
    want = Want.read(bench.sender.parcels[0][1])
    assert want.trust is not None
    assert want.trust.roles == {"digits": 0}


async def test_a_floor_that_was_seen_once_holds_for_ever(bench: Bench) -> None:
    old = bench.publish(make_release(1.0, version="1.0.0", seq=1))
    new = make_release(2.0, version="2.0.0", seq=2)
    bench.publish(type(new)(new.model, new.smoke, new.custom, floor=2))
    await carry_out(bench, bench.assign(new))
    await carry_out(bench, bench.assign(old))
    assert bench.sender.steps[-2:] == ["confirm/ok", "accept/refused/below_floor"]
    assert bench.sender.reports[-1].running_sha256 == new.digest


async def test_a_failed_smoke_test_leaves_the_old_version_running(bench: Bench) -> None:
    good = bench.publish(make_release(2.0))
    bad = bench.publish(make_release(3.0, version="1.1.0", seq=2, expected=2.0))
    await carry_out(bench, bench.assign(good))
    handler = await carry_out(bench, bench.assign(bad))
    assert bench.sender.steps[-2:] == ["accept/ok", "smoke/failed/smoke_mismatch"]
    assert bench.sender.reports[-1].running_sha256 == good.digest
    assert (await handler.infer("digits", [[1, 1, 1, 1]]))["sha256"] == good.digest


async def test_bytes_that_are_no_model_are_reported(bench: Bench) -> None:
    made = make_release()
    await carry_out(bench, bench.assign(bench.publish(type(made)(b"not onnx", made.smoke, made.custom))))
    assert bench.sender.steps[-1] == "smoke/failed/bad_model"
    assert bench.sender.reports[-1].running_sha256 is None


async def test_bytes_that_changed_on_the_way_never_become_a_slot(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench.publish(make_release())

    async def tamper(artifact: Artifact, destination: Path) -> None:
        await asyncio.to_thread(destination.write_bytes, made.model[:-1] + b"!")

    monkeypatch.setattr(bench.library, "fetch", tamper)
    await carry_out(bench, bench.assign(made))
    assert bench.sender.steps[-1] == "verify/failed/wrong_digest"
    assert not Slots(bench.context.folder.slots).holds("digits", made.digest)


async def test_a_model_that_takes_the_worker_down_is_given_up_after_its_tries(bench: Bench) -> None:
    good, bad = bench.publish(make_release(2.0)), bench.publish(make_release(3.0, version="1.1.0", seq=2))
    await carry_out(bench, bench.assign(good))
    bench.library.calls.clear()
    bench.library.lose = {"smoke": 99}
    await carry_out(bench, bench.assign(bad))
    assert bench.library.calls.count("smoke") == 4
    assert bench.sender.steps[-1] == "smoke/failed/crashed"
    assert bench.sender.reports[-1].running_sha256 == good.digest


async def test_a_worker_lost_once_costs_a_try_and_no_more(bench: Bench) -> None:
    bench.library.lose = {"smoke": 1, "infer": 1}
    await carry_out(bench, bench.assign(bench.publish(make_release())))
    assert bench.sender.steps == ["accept/ok", "confirm/ok"]


async def test_a_link_that_comes_and_goes_only_delays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench.publish(make_release())
    whole, cuts = bench.library.fetch, [1, 1, 1]

    async def cut(artifact: Artifact, destination: Path) -> None:
        if cuts:
            cuts.pop()
            raise FetchError("fetch: no piece came", reason="timeout")
        await whole(artifact, destination)

    monkeypatch.setattr(bench.library, "fetch", cut)
    await carry_out(bench, bench.assign(made))
    assert bench.sender.steps[-1] == "confirm/ok"


async def test_gates_hold_an_installation_back_and_say_so_once(bench: Bench) -> None:
    made = bench.publish(make_release())
    low = Heartbeat(session=SESSION, uptime_s=1, battery_percent=10)
    bench.body.doing = low
    handler = OtaHandler(bench.context, QUICK)
    await handler.handle(bench.assign(made, gates=Gates(min_battery_percent=50)))
    await asyncio.to_thread(eventually, lambda: "accept/waiting/battery" in bench.sender.steps, "the gate to hold")
    bench.body.doing = low.model_copy(update={"battery_percent": 80.0})
    await handler.settled()
    assert bench.sender.steps == ["accept/ok", "accept/waiting/battery", "confirm/ok"]


async def test_a_newer_assignment_replaces_one_that_waits(bench: Bench) -> None:
    first, second = bench.publish(make_release(2.0)), bench.publish(make_release(3.0, version="1.1.0", seq=2))
    bench.body.doing = Heartbeat(session=SESSION, uptime_s=1, battery_percent=10)
    handler = OtaHandler(bench.context, QUICK)
    await handler.handle(bench.assign(first, gates=Gates(min_battery_percent=50)))
    await asyncio.to_thread(eventually, lambda: "accept/waiting/battery" in bench.sender.steps, "the gate to hold")
    await handler.handle(bench.assign(second))
    await handler.settled()
    assert bench.sender.steps[2:] == ["accept/failed/superseded", "accept/ok", "confirm/ok"]
    assert bench.sender.reports[-1].running_sha256 == second.digest


async def test_an_older_assignment_is_a_replay(bench: Bench) -> None:
    old, new = bench.publish(make_release(2.0)), bench.publish(make_release(3.0, version="1.1.0", seq=2))
    stale = bench.assign(old)
    await carry_out(bench, bench.assign(new))
    await carry_out(bench, stale)
    assert bench.sender.steps[-1] == "accept/refused/replayed"
    assert bench.sender.reports[-1].running_sha256 == new.digest


async def test_rollback_needs_no_fresh_metadata_and_removal_ends_serving(bench: Bench) -> None:
    first, second = bench.publish(make_release(2.0)), bench.publish(make_release(3.0, version="1.1.0", seq=2))
    await carry_out(bench, bench.assign(first))
    await carry_out(bench, bench.assign(second))
    bench.library.lookup_errors = ["expired"] * 3
    handler = await carry_out(bench, bench.assign(first, action="rollback"))
    assert bench.sender.steps[-1] == "confirm/ok"
    assert bench.sender.reports[-1].running_sha256 == first.digest
    assert (await handler.infer("digits", [[1, 1, 1, 1]]))["outputs"] == {"y": [[2, 2, 2, 2]]}
    handler = await carry_out(bench, bench.assign(first, action="remove"))
    assert (bench.sender.steps[-1], handler.served()) == ("confirm/ok", [])
    with pytest.raises(EdgeError, match="no version of it is installed") as raised:
        await handler.infer("digits", [[1, 1, 1, 1]])
    assert raised.value.reason == "not_installed"


async def test_a_revoked_version_is_no_place_to_go_back_to(bench: Bench) -> None:
    first = make_release(2.0)
    second = bench.publish(make_release(3.0, version="1.1.0", seq=2))
    bench.publish(first)
    await carry_out(bench, bench.assign(first))
    await carry_out(bench, bench.assign(second))
    bench.library.releases = [type(first)(first.model, first.smoke, first.custom, revoked=("1.0.0",))]
    await carry_out(bench, bench.assign(first, action="rollback"))
    assert bench.sender.steps[-1] == "accept/refused/revoked"
    assert bench.sender.reports[-1].running_sha256 == second.digest


async def test_flapping_assignments_are_stopped_by_the_owners_limit(bench: Bench) -> None:
    bench.settings = EdgeSettings(limits=OwnerLimits(max_activations_per_day=1))
    first, second = bench.publish(make_release(2.0)), bench.publish(make_release(3.0, version="1.1.0", seq=2))
    await carry_out(bench, bench.assign(first))
    await carry_out(bench, bench.assign(second))
    assert bench.sender.steps[-1] == "accept/refused/activation_limit"


async def test_a_damaged_state_is_set_aside_and_reported(bench: Bench) -> None:
    made = bench.publish(make_release())
    await carry_out(bench, bench.assign(made))
    path = Slots(bench.context.folder.slots).state_file("digits")
    path.write_bytes(path.read_bytes().replace(b"digits", b"digitz"))
    handler = OtaHandler(bench.context, QUICK)
    assert handler.served() == []
    assert bench.sender.letters[-1][0] == "event"
    await carry_out(bench, bench.assign(made))
    assert bench.sender.steps[-1] == "confirm/ok"


async def test_a_verdict_that_finds_no_room_is_reported_later_without_a_restart(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, refusals = bench.sender.send, iter([OutboxError("the disk is full"), OSError(errno.ENOSPC, "no space")])

    def send_when_there_is_room(kind: str, data: Message, **options: Any) -> str:
        if getattr(data, "step", None) == "confirm" and (refusal := next(refusals, None)) is not None:
            raise refusal
        return send(kind, data, **options)

    monkeypatch.setattr(bench.sender, "send", send_when_there_is_room)
    made = bench.publish(make_release())
    handler = await carry_out(bench, bench.assign(made))
    assert next(refusals, None) is None
    assert bench.sender.steps == ["accept/ok", "confirm/ok"]
    assert [kind for kind, _ in bench.sender.letters] == ["report", "report"]
    assert [served.digest for served in handler.served()] == [made.digest]


def test_the_handler_loads_nothing_heavy() -> None:
    code = (
        "import sys, edge_runtime.ota.install\n"
        "heavy = {'numpy', 'onnxruntime', 'tuf', 'zstandard', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
