"""Letters that cannot be signed: a file of another version, or one that somebody changed, may hold them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from ulid import ULID

from edge_runtime.carriers import packer
from edge_runtime.letters.heads import foreign_marks
from edge_runtime.letters.sending import Run
from edge_runtime.letters.signing import signed
from schemas.courier import Losses
from schemas.envelope import Signer
from schemas.errors import ContractError
from schemas.events import Untyped
from schemas.ids import Address
from tests.support.carriers import Realm, Traveller, letters_of
from tests.support.outbox import Bench, fill

IDENTITY = SimpleNamespace(address=Address("home", "cam-1"), platform=str(ULID()), signer=Signer.generate())


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.outbox.close()


@pytest.mark.parametrize("full", [False, True])
def test_a_letter_that_cannot_be_sent_is_given_up_by_name(bench, full) -> None:
    ids = [bench.add(n) for n in range(4)]
    if full:
        bench.outbox.database.limit_pages(bench.outbox.database.pages())
        ids += fill(bench)
    for sequence in (2, len(ids)):
        (letter,) = bench.outbox.load("normal", Run(sequence, sequence))
        # What stands in a file that cannot be written cannot be struck from it.
        assert bench.outbox.give_up(letter, "unsendable") is (not full or sequence > 4)
    bench.outbox.database.limit_pages(1_000_000)
    bench.outbox.trim()
    if full:
        (letter,) = bench.outbox.load("normal", Run(2, 2))
        assert bench.outbox.give_up(letter, "unsendable")
    assert not bench.outbox.give_up(letter, "unsendable"), "it is gone"
    gone = [ids[1], ids[-1]]
    assert [letter_id for _, letter_id in bench.all_above()] == [name for name in ids if name not in gone]
    assert bench.outbox.summary().dropped == 2
    assert [row[:4] for row in bench.losses()] == [("normal", n, n, "unsendable") for n in (2, len(ids))]
    assert [row[0] for row in bench.rows("SELECT id FROM lost ORDER BY sequence")] == gone


def test_a_bundle_is_packed_without_it(pair: tuple[Traveller, Traveller], realm: Realm) -> None:
    a, _ = pair
    ids = [a.say() for _ in range(3)]
    with a.outbox.database.write("change a letter") as connection:
        connection.execute("UPDATE letters SET data = 'torn' WHERE id = ?", (ids[1],))
    a.custodian.packer.pack(urgent=True)
    packed = [letter.id for parcels in a.bundles().values() for letter in letters_of(realm.open(parcels))]
    assert packed == [ids[0], ids[2]]
    assert a.outbox.summary().dropped == 1


def test_however_many_stand_in_front_one_export_takes_what_is_behind_them(
    pair: tuple[Traveller, Traveller], realm: Realm, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, _ = pair
    ids = [a.say() for _ in range(8)]
    with a.outbox.database.write("change letters") as connection:
        connection.execute("UPDATE letters SET data = 'torn' WHERE sequence <= 6")
    monkeypatch.setattr(packer, "MAX_GIVEN_UP", 2)
    assert a.custodian.packer.pack(urgent=True) == 0, "no bundle was made"
    assert a.custodian.packer.problem == "2 letters that cannot be signed were given up; the others go the next time"
    monkeypatch.undo()
    done = a.stick(stick).export(urgent=True)
    assert (done.bundles, done.fragments, done.problem) == (1, 1, None)
    packed = [letter.id for parcels in a.bundles().values() for letter in letters_of(realm.open(parcels))]
    assert packed == ids[6:]
    assert a.outbox.summary().dropped == 6


@pytest.mark.parametrize("kind", ["sample", "losses"])
@pytest.mark.parametrize(
    ("column", "torn"),
    [
        ("id", "nonsense"),
        ("kind", "Bad Kind\n"),
        ("kind", "sampla"),
        ("time", "torn"),
        ("data", "torn"),
        ("data", b"\xff"),
    ],
)
def test_whatever_is_torn_the_letter_is_given_up_and_the_loss_is_told(bench, column, torn, kind) -> None:
    ids = [bench.add(n) for n in range(3)]
    (second,) = bench.outbox.load("normal", Run(2, 2))
    bench.outbox.give_up(second, "unsendable")
    if kind == "losses":
        assert bench.outbox.report_losses()
    lane, sequence = ("control", 1) if kind == "losses" else ("normal", 3)
    tear(bench, f"UPDATE letters SET {column} = ? WHERE lane = ? AND sequence = ?", (torn, lane, sequence))
    (letter,) = bench.outbox.load(lane, Run(sequence, sequence))
    with pytest.raises(ContractError, match="cannot be signed"):
        signed(letter, IDENTITY, datetime.now(UTC), timedelta(days=1))
    # The platform's word about the number of a letter that a torn report named: neither proof of another disk.
    assert foreign_marks(bench.outbox, bench.outbox.lanes(), {"normal": 2}, {"normal": ids[1]}) == {}
    assert bench.outbox.give_up(letter, "unsendable")
    (report,) = bench.outbox.report_losses()
    told = Losses.read(bench.rows(f"SELECT data FROM letters WHERE id = '{report}'")[0][0].encode()).losses
    assert (lane, sequence) in [(loss.lane, loss.last) for loss in told]
    named = [name.id for loss in told for name in loss.names]
    # A kind that a later version may know can still be told.
    assert (letter.id in named) is (column != "id" and torn != "Bad Kind\n")
    assert bench.outbox.report_losses() == []


def test_a_report_of_losses_that_says_something_else_is_given_up_and_the_losses_are_told_again(bench) -> None:
    ids = [bench.add(n) for n in range(2)]
    (letter,) = bench.outbox.load("normal", Run(1, 1))
    bench.outbox.give_up(letter, "unsendable")
    bench.outbox.add("losses", Untyped(number=1), "control")
    (foreign,) = bench.outbox.load("control", Run(1, 1))
    assert bench.outbox.give_up(foreign, "unsendable")
    tear(bench, "INSERT OR REPLACE INTO lost VALUES (?, 'normal', 1, 'nonsense', 'Bad Kind')", (bench.outbox.epoch,))
    (report,) = bench.outbox.report_losses()
    told = Losses.read(bench.rows(f"SELECT data FROM letters WHERE id = '{report}'")[0][0].encode()).losses
    assert [(loss.lane, [name.id for name in loss.names]) for loss in told] == [
        ("control", [foreign.id]),
        ("normal", []),
    ]
    assert bench.rows("SELECT * FROM lost") == []
    assert bench.all_above() == [(2, ids[1])]


def tear(bench: Bench, change: str, values: tuple[object, ...]) -> None:
    with bench.outbox.database.write("change a row") as connection:
        connection.execute(change, values)
