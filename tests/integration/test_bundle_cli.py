"""`causeway bundle`: a folder into the platform and out of it, with the command line that an operator uses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result
from ulid import ULID

from causeway import sdk
from causeway.bundle.folder import BundleFolder
from schemas.bundles import Parcel
from schemas.depot import read_recipe
from schemas.ota import Assign
from schemas.registry import Twin
from tests.support.carried import CarriedDevice, carry, unacknowledged
from tests.support.courier_world import ids, letters, post
from tests.support.models import scale_model
from tests.support.platform import LivePlatform, eventually, serving
from tests.support.raw_device import RawDevice, enrol
from tests.support.releases import causeway, publish


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LivePlatform]:
    """A platform that no test may break for the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAUSEWAY_COURIER_ANSWER_BYTES", "65536")
        with serving(tmp_path_factory.mktemp("world") / "state", "depot", "registry", "courier") as live:
            patch.undo()
            yield live


@pytest.fixture
def away(world: LivePlatform) -> CarriedDevice:
    device = CarriedDevice(world, f"cam-{ULID()}")
    enrol(world, device)
    return device


def bundle(live: LivePlatform, verb: str, folder: Path, *words: object, code: int = 0) -> dict[str, Any]:
    """One verb with --json."""
    done = causeway(live, "bundle", verb, folder, *words, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def put_up(folder: Path, *parcels: Parcel) -> list[Path]:
    """What a device's export leaves in a folder."""
    up = folder / "causeway" / "up"
    up.mkdir(parents=True, exist_ok=True)
    paths = [up / f"{bundle_id}.{index}.bundle" for bundle_id, index in (parcel.key for parcel in parcels)]
    for path, parcel in zip(paths, parcels, strict=True):
        path.write_bytes(parcel.write())
    return paths


def down(folder: Path, device: CarriedDevice) -> list[Path]:
    return sorted((folder / "causeway" / "down" / str(device.address).replace("/", ".")).glob("*.bundle"))


def frames(folder: Path, device: CarriedDevice) -> list[bytes]:
    return [path.read_bytes() for path in down(folder, device)]


def mine(live: LivePlatform, device: CarriedDevice) -> list[str]:
    return [name for name in letters(live) if f":{device.name}:" in name]


def test_what_is_stored_goes_from_the_folder_and_leaves_a_receipt(
    world: LivePlatform, away: CarriedDevice, tmp_path: Path
) -> None:
    parcels = away.bundle([away.enclose() for _ in range(5)])
    (path,) = put_up(tmp_path, *parcels)
    (origin,) = bundle(world, "import", tmp_path)["origins"]
    assert (origin["device"], origin["bundles"], origin["stored"]) == (away.name, {"stored": 1}, 5)
    assert not path.exists()
    assert mine(world, away) == ids(away, "normal", 5)
    (answer,) = away.answers(frames(tmp_path, away))
    assert answer.acknowledges == [parcels[0].head.id]
    assert answer.receipts()[0].marks == {"normal": 5}

    # The copy of the stick that somebody else took along.
    put_up(tmp_path, *parcels)
    (origin,) = bundle(world, "import", tmp_path)["origins"]
    assert origin["bundles"] == {"known": 1}
    assert not path.exists()
    assert mine(world, away) == ids(away, "normal", 5)
    assert bundle(world, "import", tmp_path)["origins"] == []


def test_bundles_in_the_wrong_order_are_stored_all_the_same(
    world: LivePlatform, away: CarriedDevice, tmp_path: Path
) -> None:
    names = sorted(str(ULID()) for _ in range(3))
    enclosed = [away.enclose() for _ in range(3)]
    for name, letter in zip(reversed(names), enclosed, strict=True):
        put_up(tmp_path, *away.bundle([letter], bundle_id=name))
    (origin,) = bundle(world, "import", tmp_path)["origins"]
    assert (origin["bundles"], origin["stored"], origin["early"]) == ({"stored": 3}, 3, 0)
    assert mine(world, away) == ids(away, "normal", 3)


def test_what_cannot_be_stored_stays_and_says_why(world: LivePlatform, away: CarriedDevice, tmp_path: Path) -> None:
    first, second = away.enclose(), away.enclose()
    (early,) = put_up(tmp_path, *away.bundle([second]))
    (damaged,) = put_up(tmp_path, *away.bundle())
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    (old,) = put_up(tmp_path, *away.bundle(lifetime_s=60))
    os.utime(old, (0, 0))
    (renamed,) = put_up(tmp_path, *away.bundle())
    renamed = renamed.rename(renamed.with_name(f"{ULID()}.0.bundle"))
    nonsense = early.with_name(f"{ULID()}.0.bundle")
    nonsense.write_bytes(b"x" * 100_000)
    (early.parent / "holiday.jpg").write_bytes(b"not ours")
    report = bundle(world, "import", tmp_path, code=4)
    stays = {early, damaged, old, renamed, nonsense}
    assert all(path.exists() for path in stays)
    reasons = " ".join(reason for origin in report["origins"] for reason in origin["reasons"])
    for path, why in ((damaged, "is not what its origin signed"), (old, "on its way"), (renamed, "its name back")):
        assert path.name in reasons
        assert why in reasons
    assert f"{nonsense.name}: fragment of" in reasons
    states = [origin["bundles"] for origin in report["origins"] if origin["device"] == away.name]
    assert states[0]["early"] == 1
    assert mine(world, away) == []
    for path in stays - {early}:
        path.unlink()
    put_up(tmp_path, *away.bundle([first]))
    (origin,) = bundle(world, "import", tmp_path)["origins"]
    assert (origin["bundles"], origin["stored"]) == ({"stored": 2}, 2)
    assert mine(world, away) == ids(away, "normal", 2)


def test_a_bundle_of_which_a_part_is_missing_waits_for_the_next_stick(
    world: LivePlatform, away: CarriedDevice, tmp_path: Path
) -> None:
    parcels = away.bundle(away.enclose_much(3))
    paths = put_up(tmp_path / "a", *parcels[:2])
    (origin,) = bundle(world, "import", tmp_path / "a")["origins"]
    assert origin["bundles"] == {"incomplete": 1}
    assert all(path.exists() for path in paths)
    put_up(tmp_path / "b", parcels[2])
    (origin,) = bundle(world, "import", tmp_path / "b")["origins"]
    assert (origin["bundles"], origin["stored"]) == ({"stored": 1}, 3)
    (origin,) = bundle(world, "import", tmp_path / "a")["origins"]
    assert origin["bundles"] == {"known": 1}
    assert not any(path.exists() for path in paths)


def test_a_carriers_part_is_settled_by_the_rest_from_a_stick(
    world: LivePlatform, away: CarriedDevice, tmp_path: Path
) -> None:
    carrier = RawDevice(world, f"carrier-{ULID()}")
    enrol(world, carrier)
    carrier.connect()
    try:
        parcels = away.bundle(away.enclose_much(2))
        carry(carrier, parcels[:1])
        carrier.settle()
        eventually(lambda: unacknowledged(world) == 1, "the carrier's part to be held")
        put_up(tmp_path, parcels[1])

        def stored() -> bool:
            # Until the courier has read the carrier's part, the stick's waits for it.
            (origin,) = bundle(world, "import", tmp_path)["origins"]
            return "incomplete" not in origin["bundles"]

        eventually(stored, "the bundle to be whole")
        assert [name for name in letters(world, "sample") if f":{away.name}:" in name] == ids(away, "normal", 2)
        assert unacknowledged(world) == 0, "nobody needs the carrier's part any more"
    finally:
        carrier.close()


def test_everything_that_waits_for_a_device_is_written_however_much(
    world: LivePlatform, away: CarriedDevice, tmp_path: Path
) -> None:
    posted = post(world, away, "config", *[Twin()] * 130)
    # Before the device ever said a word there is no session that a receipt could be bound to.
    (report,) = bundle(world, "export", tmp_path, "--device", away.name)["devices"]
    assert (report["letters"], report["receipts"], report["trust"]) == (130, 0, True)
    answers = away.answers(frames(tmp_path, away))
    assert len(answers) == report["bundles"] > 1
    assert [letter.id for answer in answers for letter in answer.letters("config")] == posted
    assert [answer.contents.trust is not None for answer in answers] == [True, *[False] * (len(answers) - 1)]

    put_up(tmp_path, *away.bundle([away.enclose()], got=posted[:129]))
    bundle(world, "import", tmp_path)
    (report,) = bundle(world, "export", tmp_path, "--device", str(away.address))["devices"]
    assert (report["letters"], report["receipts"]) == (1, 1)
    # What said the same before is gone.
    (answer,) = away.answers(frames(tmp_path, away))
    assert [letter.id for letter in answer.letters("config")] == posted[129:]
    assert answer.receipts()[0].marks == {"normal": 1}

    named = {each["device"] for each in bundle(world, "export", tmp_path, "--all")["devices"]}
    assert away.name in named


def test_a_release_is_taken_along_piece_by_piece_and_only_once(
    world: LivePlatform, away: CarriedDevice, tmp_path: Path
) -> None:
    publish(world, tmp_path)
    stick = tmp_path / "stick"
    stick.mkdir()
    report = bundle(world, "export", stick, "--device", away.name, "--release", "scale@1.0.0")
    model = next(a for a in report["artifacts"] if a["sha256"] == hashlib.sha256(scale_model(2.0)).hexdigest())
    assert model["copied"] == model["pieces"]
    assert len(report["artifacts"]) == 2
    lying = {path.name: path for path in (stick / "causeway" / "pieces").glob("*/*")}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == name for name, path in lying.items())
    assert all(path.parent.name == name[:2] for name, path in lying.items())
    whole = b"".join(lying[entry.sha256].read_bytes() for entry in read_recipe(recipe_of(lying, model)))
    assert whole == scale_model(2.0)

    before = {path: path.stat().st_mtime_ns for path in lying.values()}
    next(path for path in lying.values() if path.read_bytes() == scale_model(2.0)).unlink()
    again = bundle(world, "export", stick, "--device", away.name, "--release", "scale")
    assert sorted(artifact["copied"] for artifact in again["artifacts"]) == [0, 1]
    assert len([path for path in before if path.stat().st_mtime_ns == before[path]]) == len(before) - 1


def test_a_withdrawn_release_and_a_barred_device_keep_no_other_waiting(
    world: LivePlatform, away: CarriedDevice, tmp_path: Path
) -> None:
    gone = Assign(
        model="doors",
        target="doors/1.0.0.onnx",
        version="1.0.0",
        sha256="ab" * 32,
        length=1,
        seq=1,
        action="install",
        rollout=str(ULID()),
        wave=0,
        deadline=datetime.now(UTC),
    )
    posted = post(world, away, "assign", gone, service="ota")
    barred, last = CarriedDevice(world, f"cam-{ULID()}"), CarriedDevice(world, f"cam-{ULID()}")
    for device in (barred, last):
        enrol(world, device)
        post(world, device, "config", Twin())
    enrol(world, barred, standing="quarantined")

    def export() -> Result | None:
        done = causeway(world, "bundle", "export", tmp_path, "--all", "--json")
        return done if done.exit_code == 4 else None

    # Before the courier has read the record, the barred one may still have its letters.
    done = eventually(export, "the export to leave something out")
    assert done is not None
    report = json.loads(done.stdout)
    told = {each["device"]: each for each in report["left_out"]}
    assert set(told) == {away.name, barred.name}
    assert (told[away.name]["release"], told[barred.name]["release"]) == ("doors 1.0.0", None)
    assert f"left out: home/{away.name}, release doors 1.0.0: show release" in done.stderr
    assert "it is quarantined" in done.stderr
    written = {each["device"]: each["letters"] for each in report["devices"]}
    assert (written[away.name], written[last.name]) == (1, 1)
    assert barred.name not in written
    assert down(tmp_path, away)
    assert down(tmp_path, last)

    bundle(world, "export", tmp_path, "--device", away.name, code=3)
    enrol(world, barred)
    put_up(tmp_path, *away.bundle(got=posted))
    bundle(world, "import", tmp_path)


def recipe_of(lying: dict[str, Path], model: dict[str, Any]) -> bytes:
    """The recipe among the pieces: it has one entry per piece, of the model's whole length."""
    (raw,) = [
        path.read_bytes()
        for path in lying.values()
        if path.stat().st_size == 36 * model["pieces"]
        and path.read_bytes()[:32].hex() in lying
        and lying[path.read_bytes()[:32].hex()].read_bytes() == scale_model(2.0)
    ]
    return raw


@pytest.mark.parametrize(
    ("code", "told", "words"),
    [
        (2, "is the stick mounted", ("import", "OUT/nothing")),
        (2, "is the stick mounted", ("export", "OUT/nothing", "--all")),
        (2, "--device", ("export", "OUT")),
        (2, "not both", ("export", "OUT", "--device", "a", "--all")),
        (2, "not an identifier", ("export", "OUT", "--device", "a.b")),
        (3, "there is no such device", ("export", "OUT", "--device", "nobody")),
        (3, "causeway release list", ("export", "OUT", "--all", "--release", "nothing")),
    ],
)
def test_a_wrong_command_says_so(
    world: LivePlatform, tmp_path: Path, code: int, told: str, words: tuple[str, ...]
) -> None:
    done = causeway(world, "bundle", *(word.replace("OUT", str(tmp_path)) for word in words))
    assert done.exit_code == code, done.output
    assert told in done.stderr


def test_without_a_courier_nothing_is_lost_and_the_command_says_so(
    live: LivePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdk, "TAKEOVER_S", 0.2)
    away = CarriedDevice(live, "cam-1")
    enrol(live, away)
    (path,) = put_up(tmp_path, *away.bundle([away.enclose()]))
    done = causeway(live, "bundle", "import", tmp_path)
    assert done.exit_code == 5
    assert "courier" in done.stderr
    assert path.exists()
    live.start_service("courier")
    bundle(live, "import", tmp_path)
    assert not path.exists()
    eventually(lambda: mine(live, away) == ids(away, "normal", 1), "the letter in IN")


def test_files_are_listed_in_the_order_of_their_making(tmp_path: Path) -> None:
    up = tmp_path / "causeway" / "up"
    up.mkdir(parents=True)
    first, second = sorted(str(ULID()) for _ in range(2))
    for name in (f"{second}.0", f"{first}.10", f"{first}.2", "x.0", f"{first}.2.bundle.tmp"):
        (up / f"{name}.bundle").write_bytes(b"")
    found, left = BundleFolder(tmp_path).up()
    assert left == 0
    assert [(file.bundle, file.index) for files in found.values() for file in files] == [
        (first, 2),
        (first, 10),
        (second, 0),
    ]
