"""What the rows of the store mean, with the ages of now."""

from __future__ import annotations

from sqlite3 import Row

from edge_runtime.carriers.ages import Moment, elapsed_s
from edge_runtime.carriers.packing import Packed, Span
from edge_runtime.carriers.routing import Carried
from schemas.bundles import BUNDLE_TYPE, MAX_HOPS, MAX_LIFETIME_S, BundleHead, Parcel, Way
from schemas.envelope import parse
from schemas.events import LANES


def read_carried(row: Row, now: Moment) -> Carried:
    """A fragment without its payload."""
    return Carried(
        key=(row["bundle"], row["mark"]),
        index=row["idx"],
        verified=bool(row["verified"]),
        origin=row["origin"],
        destination=row["destination"],
        priority=row["priority"],
        lifetime_s=row["lifetime_s"],
        hops=row["hops"],
        copies=row["copies"],
        age_s=_age(row, now),
        bytes=row["bytes"],
        own=bool(row["own"]),
        giver=row["giver"],
    )


def read_stored(row: Row, now: Moment) -> Parcel:
    """A whole fragment; its way says what this device holds now."""
    head_bytes = bytes(row["head"])
    envelope = parse(head_bytes, BUNDLE_TYPE)
    age_s = min(_age(row, now), 2.0 * MAX_LIFETIME_S)
    way = Way(hops=min(row["hops"], MAX_HOPS), copies=max(1, row["copies"]), age_s=age_s)
    return Parcel(BundleHead.read(envelope.body), envelope, head_bytes, way, bytes(row["payload"]))


def read_packed(row: Row, now: Moment) -> Packed:
    """An open bundle of this device."""
    spans = {}
    for part in filter(None, row["ranges"].split(",")):
        lane, _, span = part.partition(":")
        first, _, last = span.partition("-")
        spans[next(known for known in LANES if known == lane)] = Span(int(first), int(last))
    age_s = elapsed_s(Moment(row["boot"], row["since_boot_s"], row["clock_s"]), now)
    return Packed(row["bundle"], row["epoch"], spans, row["told"], age_s, bool(row["is_full"]))


def _age(row: Row, now: Moment) -> float:
    return float(row["age_s"]) + elapsed_s(Moment(row["boot"], row["since_boot_s"], row["clock_s"]), now)
