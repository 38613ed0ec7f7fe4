"""What survives a restart, and the bounds of what is kept and told."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from edge_runtime.carriers.ages import Moment
from edge_runtime.carriers.frames import (
    MAX_SUMMARY_BUNDLES,
    MAX_SUMMARY_DONE,
    MAX_SUMMARY_FRAGMENTS,
    SUMMARY,
    Summary,
    by_bundle,
    keys,
)
from edge_runtime.carriers.names import Label, key_of
from edge_runtime.carriers.port import MAX_FRAME_BYTES
from edge_runtime.carriers.store import MAX_DONE, CarriedStore
from schemas.bundles import Contents
from tests.support.carriers import Realm, Traveller


def test_a_restart_forgets_nothing_and_time_goes_on(realm: Realm, tmp_path: Path) -> None:
    now = [Moment("boot-1", 100.0, 1_000_000.0)]
    target = Traveller(realm, tmp_path / "t", "t")
    (down,) = realm.answer(target, Contents(), lifetime_s=10_000)
    path = tmp_path / "carriers.db"
    store = CarriedStore(path, lambda: now[0])
    store.add([down.on_its_way(hops=2, copies=3, age_s=50.0)], copies=3, giver="somebody")
    gone, over = ("01J00000000000000000000009", "mark"), Label("01J00000000000000000000008", "/x", "/y")
    store.let_go([gone])
    store.finish([over], ("01J00000000000000000000007", b"head"))
    now[0] = Moment("boot-1", 160.0, 1_000_060.0)
    assert store.carried()[0].age_s == 110.0
    store.close()
    now[0] = Moment("boot-2", 5.0, 1_003_600.0)
    store = CarriedStore(path, lambda: now[0])
    (kept,) = store.carried()
    assert (kept.age_s, kept.copies, kept.hops, kept.giver) == (3_650.0, 3, 2, "somebody")
    found = store.load(key_of(down))
    assert found is not None
    assert found.way.age_s == 3_650.0
    assert found.payload == down.payload
    assert store.was_seen(gone)
    assert store.is_done(over)
    assert store.proofs(["01J00000000000000000000008"]) == [b"head"]
    now[0] = Moment("boot-2", 10_000.0, 1_013_600.0)
    assert store.carried()[0].expired
    store.close()
    target.close()


def test_a_file_of_before_the_marks_is_begun_anew(pair: tuple[Traveller, Traveller], tmp_path: Path) -> None:
    path = tmp_path / "carriers.db"
    old = sqlite3.connect(path)
    old.executescript(
        """
        CREATE TABLE fragments (bundle TEXT NOT NULL, idx INTEGER NOT NULL, PRIMARY KEY (bundle, idx));
        CREATE TABLE seen (
            number INTEGER PRIMARY KEY, bundle TEXT NOT NULL, idx INTEGER NOT NULL, UNIQUE (bundle, idx));
        CREATE TABLE done (number INTEGER PRIMARY KEY, bundle TEXT NOT NULL UNIQUE, proof TEXT NOT NULL);
        CREATE TABLE packed (bundle TEXT PRIMARY KEY, epoch TEXT NOT NULL) WITHOUT ROWID;
        INSERT INTO fragments VALUES ('01J00000000000000000000009', 0);
        """
    )
    old.close()
    store = CarriedStore(path)
    assert (store.carried(), store.letters(), store.packed(), store.done(9), store.seen(9)) == ([], {}, [], [], [])
    a, _ = pair
    a.say()
    a.custodian.packer.pack()
    parcels = [parcel for packed in a.store.packed() for parcel in a.store.fragments_of(packed.id)]
    store.add(parcels, copies=1)
    store.close()
    store = CarriedStore(path)
    assert len(store.carried()) == len(parcels) > 0, "once, not at each start"
    store.close()


def test_memory_of_what_is_done_is_bounded(tmp_path: Path) -> None:
    store = CarriedStore(tmp_path / "carriers.db")
    names = [f"01J{n:023d}" for n in range(MAX_DONE + 10)]
    labels = [Label(name, "/x", "/y") for name in names]
    store.finish(labels)
    assert store.done(10**6) == [label.name for label in labels[:9:-1]]
    store.close()


def test_a_share_goes_once_however_many_give_it_at_the_same_time(three: list[Traveller], realm: Realm) -> None:
    a, _, c = three
    (down,) = realm.answer(c, Contents())
    a.custodian.down(down.write())
    assert a.store.give(key_of(down), was=4, kept=2)
    assert not a.store.give(key_of(down), was=4, kept=2), "the other was quicker"
    assert [one.copies for one in a.store.carried()] == [2]


def test_the_longest_summary_fits_into_a_frame() -> None:
    names = [f"01J{n:023d}" for n in range(MAX_SUMMARY_BUNDLES + 50)]
    summary = Summary(
        fleet="f" * 63,
        device="d" * 63,
        platform=names[0],
        gateway=True,
        has=by_bundle([*((name, f"{n:016d}") for n in range(3) for name in names), (names[0], "x" * 16)]),
        done=[Label(name, "/x", "/y").name for name in names[:MAX_SUMMARY_DONE]],
        room_fragments=2**53,
        room_bytes=2**53,
    )
    assert len(SUMMARY + summary.write()) <= MAX_FRAME_BYTES
    assert len(summary.has) == MAX_SUMMARY_BUNDLES
    assert MAX_SUMMARY_FRAGMENTS - 150 <= len(keys(summary.has)) <= MAX_SUMMARY_FRAGMENTS
