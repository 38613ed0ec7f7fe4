"""What two devices say to each other when they meet, whatever carries the frames.

Both begin with a summary. Then each sends the fragments that routing grants the other, a few at a time:

    sender                          receiver
    F fragment            ->        stores it, without the right to spray it
                          <-        A verdict
    gives up its share
    R release, copies     ->        owns that share
    E end, when every fragment is answered

The share changes hands in this order so that the copies never grow, whichever frame is lost with the connection: before
the answer the share is the sender's, between answer and release it is nobody's, after it the receiver's. The fragment
itself is on both sides all that time.
"""

from __future__ import annotations

from collections import deque

from edge_runtime.carriers.frames import (
    ANSWER,
    END,
    FRAGMENT,
    MAX_PROOFS,
    MAX_SUMMARY_DONE,
    PROOF,
    RELEASE,
    SUMMARY,
    Answer,
    ExchangeError,
    Release,
    Summary,
    by_bundle,
    keys,
    read,
    split,
)
from edge_runtime.carriers.names import FragmentKey, key_of
from edge_runtime.carriers.port import Custody, Limits, Peer
from schemas.bundles import read_parcel
from schemas.errors import ContractError
from schemas.ids import Address

WINDOW = 4
"""Fragments on their way at once."""


class Exchange:
    """One meeting with one peer. Frames in, frames out; knows no clock and no socket.

    The transport sends everything that `begin` and `receive` return, in order, before it closes. It may end the
    connection at any time: there is nothing to undo.

    Args:
        custody: the custodian.
        peer: whom the transport has proven to be at the other end.
        limits: of this meeting, per direction.
        key: the peer's raw Ed25519 public key, if the transport knows it, so that its own bundles can be verified.
    """

    def __init__(self, custody: Custody, peer: Address, limits: Limits, key: bytes | None = None) -> None:
        self._custody = custody
        self._peer = Peer(peer, key=key)
        self._limits = limits
        self._room = limits
        self._platform = ""
        self._introduced = False
        self._queue: deque[FragmentKey] = deque()
        self._waiting: set[FragmentKey] = set()
        self._taken: set[FragmentKey] = set()
        self._ended = False
        self._peer_ended = False
        self.sent_fragments = 0
        self.sent_bytes = 0
        self.taken_fragments = 0
        self.taken_bytes = 0
        self._proofs = 0

    @property
    def finished(self) -> bool:
        """Whether both sides have nothing more to say."""
        return self._ended and self._peer_ended

    def begin(self) -> list[bytes]:
        """Frames to send first."""
        holdings = self._custody.holdings()
        self._room = Limits(
            min(self._limits.fragments, holdings.room.fragments), min(self._limits.bytes, holdings.room.bytes)
        )
        summary = Summary(
            fleet=holdings.address.fleet,
            device=holdings.address.device,
            platform=holdings.platform,
            gateway=holdings.gateway,
            has=by_bundle(holdings.has),
            done=list(holdings.done[:MAX_SUMMARY_DONE]),
            room_fragments=self._room.fragments,
            room_bytes=self._room.bytes,
        )
        self._platform = holdings.platform
        return [SUMMARY + summary.write()]

    def receive(self, frame: bytes) -> list[bytes]:
        """Take a frame of the peer; returns the frames to send.

        Raises:
            ExchangeError: if the peer breaks the protocol; close the connection.
            OutboxError: if the disk does not do its part; close the connection, nothing is half done.
        """
        kind, body = split(frame)
        if not self._introduced:
            if kind != SUMMARY:
                raise ExchangeError(f"{self._peer.address} began with a frame {kind!r} instead of its summary")
            return self._introduce(read(Summary, body))
        if kind == ANSWER:
            return self._answered(read(Answer, body))
        if self._peer_ended:
            raise ExchangeError(f"{self._peer.address} sent a frame {kind!r} after its end")
        if kind == FRAGMENT:
            return [ANSWER + self._take(body).write()]
        if kind == RELEASE:
            self._release(read(Release, body))
        elif kind == PROOF:
            self._prove(body)
        elif kind == END:
            self._peer_ended = True
        else:
            raise ExchangeError(f"{self._peer.address} sent a frame {kind!r}, which means nothing here")
        return []

    def _introduce(self, summary: Summary) -> list[bytes]:
        address = Address(summary.fleet, summary.device)
        if address != self._peer.address:
            raise ExchangeError(f"{self._peer.address} claims to be {address}", reason="wrong_peer")
        if summary.platform != self._platform:
            raise ExchangeError(f"{address} belongs to platform {summary.platform}", reason="wrong_platform")
        self._introduced = True
        self._peer = Peer(address, summary.gateway, keys(summary.has), frozenset(summary.done), self._peer.key)
        self._limits = Limits(
            min(self._limits.fragments, summary.room_fragments), min(self._limits.bytes, summary.room_bytes)
        )
        self._queue.extend(self._custody.offers(self._peer)[: self._limits.fragments])
        proofs = [PROOF + head for head in self._custody.proofs(self._peer)[:MAX_PROOFS]]
        return [*proofs, *self._more()]

    def _more(self) -> list[bytes]:
        """Fill the window; the end once everything is answered."""
        frames = []
        while self._queue and len(self._waiting) < WINDOW:
            key = self._queue.popleft()
            parcel = self._custody.copy_for(key, self._peer)
            if parcel is None:
                continue
            raw = parcel.write()
            if self.sent_bytes + len(raw) > self._limits.bytes:
                self._queue.clear()
                break
            self._waiting.add(key)
            self.sent_fragments += 1
            self.sent_bytes += len(raw)
            frames.append(FRAGMENT + raw)
        if not self._queue and not self._waiting and not self._ended:
            self._ended = True
            frames.append(END)
        return frames

    def _answered(self, answer: Answer) -> list[bytes]:
        key = (answer.id, answer.mark)
        if key not in self._waiting:
            raise ExchangeError(f"{self._peer.address} answers for a fragment that it was not sent")
        self._waiting.discard(key)
        if answer.verdict == "full":
            self._queue.clear()
        copies = self._custody.handed(key, self._peer, answer.verdict)
        frames = self._more()
        if copies is not None:
            frames.insert(0, RELEASE + Release(id=answer.id, mark=answer.mark, copies=copies).write())
        return frames

    def _take(self, raw: bytes) -> Answer:
        try:
            parcel = read_parcel(raw)
        except ContractError as error:
            raise ExchangeError(f"{self._peer.address} sent a fragment that is none: {error}") from error
        self.taken_fragments += 1
        self.taken_bytes += len(raw)
        if self.taken_fragments > self._room.fragments or self.taken_bytes > self._room.bytes:
            raise ExchangeError(f"{self._peer.address} sends more than there was room for", reason="too_much")
        verdict, key = self._custody.take(parcel, self._peer), key_of(parcel)
        if verdict == "kept":
            self._taken.add(key)
        return Answer(id=key[0], mark=key[1], verdict=verdict)

    def _release(self, release: Release) -> None:
        key = (release.id, release.mark)
        if key not in self._taken:
            raise ExchangeError(f"{self._peer.address} releases a fragment that was not taken from it")
        self._taken.discard(key)
        self._custody.released(key, release.copies, self._peer)

    def _prove(self, head: bytes) -> None:
        self._proofs += 1
        if self._proofs > MAX_PROOFS:
            raise ExchangeError(f"{self._peer.address} sends more than {MAX_PROOFS} proofs", reason="too_much")
        self._custody.prove(head)
