"""Letters that cannot be signed: a file of another version, or one that somebody changed, may hold them."""

from __future__ import annotations

import pytest

from edge_runtime.letters.sending import Run
from tests.support.carriers import Realm, Traveller, letters_of
from tests.support.outbox import Bench, fill


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
