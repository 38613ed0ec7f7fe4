from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from schemas.courier import Loss, Losses, LostLetter
from services.registry.losses import KNOWN_REPORTS, SHOWN_NAMES, SHOWN_RANGES, LossRecord, counted

EPOCH = "01J00000000000000000000000"
REPORTS = [str(ULID.from_timestamp(second)) for second in range(1, 6)]

ranges = st.builds(
    lambda first, length, reason: Loss(
        epoch=EPOCH,
        lane="normal",
        first=first,
        last=first + length,
        reason=reason,
        letters=0 if reason == "renumbered" else length + 1,
        names=[LostLetter(id=str(ULID()), kind="sample", sequence=first + n) for n in range(length + 1)],
    ),
    st.integers(1, 1_000),
    st.integers(0, 30),
    st.sampled_from(["evicted", "expired", "superseded", "disk", "renumbered"]),
)


@given(st.fixed_dictionaries(dict.fromkeys(REPORTS, st.lists(ranges, min_size=1, max_size=12))), st.data())
def test_each_report_counts_once_in_whatever_order_and_how_often_it_is_read(reports, data) -> None:
    arrivals = data.draw(st.permutations(REPORTS + REPORTS[:2]))
    record = LossRecord()
    for report in arrivals:
        record = counted(record, report, Losses(losses=reports[report]))
    told = [loss for losses in reports.values() for loss in losses]
    assert sum(record.letters.values()) == sum(loss.letters for loss in told)
    for reason, letters in record.letters.items():
        assert letters == sum(loss.letters for loss in told if loss.reason == reason)
    assert len(record.newest) <= SHOWN_RANGES
    assert all(len(loss.names) <= SHOWN_NAMES for loss in record.newest)


def test_an_entry_stays_small() -> None:
    names = [LostLetter(id=REPORTS[0], kind="sample", sequence=2**53) for _ in range(256)]
    loss = Loss(epoch=EPOCH, lane="normal", first=1, last=2**53, reason="evicted", letters=2**53, names=names)
    record = LossRecord()
    for second in range(3 * KNOWN_REPORTS):
        record = counted(record, str(ULID.from_timestamp(second + 1)), Losses(losses=[loss] * 64))
    assert len(record.model_dump_json()) < 24_000
