"""What the courier counts; never a label per device."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LETTERS = Counter("causeway_letters_in_total", "Letters stored in IN.", ["kind"])
REFUSED = Counter("causeway_letters_refused_total", "Proven letters set aside in IN with their number spent.", ["kind"])
DUPLICATES = Counter("causeway_letters_duplicate_total", "Letters that IN held already.")
EARLY = Counter("causeway_letters_early_total", "Letters that came before their predecessor.")
LOST = Counter("causeway_letters_lost_total", "Letters that their device no longer holds and that will never come.")
CLONES = Counter("causeway_clone_suspicions_total", "Signs of two devices with one key, by proof.", ["proof"])
PACED = Counter("causeway_letters_paced_total", "Letters not taken, since their device sent too many; it sends again.")
REPLAYED = Counter("causeway_letters_replayed_total", "Rejected letters that an operator replayed.", ["outcome"])
RECEIPTS = Counter("causeway_receipts_total", "Receipts sent.")
UNADDRESSED = Counter("causeway_receipts_unaddressed_total", "Receipts not sent since no hello named the session yet.")
STORED_S = Histogram(
    "causeway_letter_stored_seconds",
    "From a letter's arrival at the bus to its place in IN.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
)
ACTIVE = Gauge("causeway_courier_active", "1 for the courier that holds the lease, 0 for a standby.")
FENCES = Counter("causeway_courier_fences_total", "Fences set in IN: takeovers and recoveries of the chain.")
MAILBOX = Gauge("causeway_mailbox_letters", "Letters down that wait for their device.")
SENT = Counter("causeway_letters_sent_total", "Letters down handed to the bus, repetitions included.", ["kind"])
GOT = Counter("causeway_letters_got_total", "Letters down that their device holds.")
DROPPED = Counter("causeway_mailbox_dropped_total", "Letters down that were dropped.", ["reason"])
BUNDLES = Counter("causeway_bundles_total", "Bundles that came to the platform, by what became of them.", ["result"])
FRAGMENTS = Gauge("causeway_bundle_fragments", "Fragments that wait for the rest of their bundle.")
ANSWERS = Counter("causeway_bundle_answers_total", "Bundles made for devices, by the way they left.", ["way"])
