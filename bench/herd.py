"""Thousands of devices in one process: `python -m bench.herd` takes a plan and orders on standard input.

One epoll loop over non-blocking TLS sockets: paho's `select` ends at 1,024 descriptors, and asyncio's TLS costs more
processor than the handshake itself.

Pauses between attempts and the patience with a server are the edge agent's own; but the agent has that patience anew
for each of TCP, TLS, CONNECT and SUBSCRIBE, a device here for the first two together and for the other two.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import socket
import ssl
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from bench.returning import Conversation, Device, Person, QueueReader
from edge_runtime.link.dialling import PHASE_TIMEOUT_S
from edge_runtime.link.link import MAX_DELAY_S, MIN_DELAY_S
from schemas.depot import TrustState
from schemas.envelope import Verifier

VERIFIED_OF = 50
"""One of so many devices verifies every signature."""
_READ_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class Plan:
    """What one herd shall be.

    Attributes:
        ca: file of the authority that the server's certificate must be of; empty for no TLS.
        letters: how many wait for each.
        trust: versions of the trust metadata that the devices hold; None for clients of plain MQTT.
        keys: public keys of the services, for the devices that verify.
        at_once: connections that are being made at a time, 0 for all.
        people: fleet, device, client id and password of each.
    """

    host: str
    port: int
    ca: str
    letters: int
    trust: dict[str, Any] | None
    keys: list[str]
    at_once: int
    people: list[tuple[str, str, str, str]]

    def write(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


def peer_topic(person: Person) -> str:
    """Where a client of plain MQTT finds its messages."""
    return f"mail/{person.device}"


@dataclass(slots=True, eq=False)
class _Link:
    talk: Conversation
    socket: ssl.SSLSocket | socket.socket | None = None
    shaking: bool = True
    unsent: bytes = b""
    deadline: float | None = None
    failures: int = 0
    planned: float | None = None
    """The one entry of the heap that counts."""


class Herd:
    """The connections and the loop."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._tls = ssl.create_default_context(cafile=plan.ca) if plan.ca else None
        people = [Person(*each) for each in plan.people]
        keys = {key.keyid: key for key in map(Verifier.from_base64, plan.keys)}
        trust = None if plan.trust is None else TrustState.model_validate(plan.trust)
        talks: list[Conversation] = [
            QueueReader(person, peer_topic(person), plan.letters)
            if trust is None
            else Device(person, plan.letters, trust, keys if place % VERIFIED_OF == 0 else None)
            for place, person in enumerate(people)
        ]
        self._links = [_Link(talk) for talk in talks]
        self._by_fd: dict[int, _Link] = {}
        self._epoll = select.epoll()
        self._wakes: list[tuple[float, int]] = []
        self._places = {id(link): place for place, link in enumerate(self._links)}
        self._queue: deque[_Link] = deque()
        self._opening: set[int] = set()
        self.problems: dict[str, int] = {}

    def run(self) -> None:
        """Obey orders until the input ends."""
        self._epoll.register(sys.stdin.fileno(), select.EPOLLIN)
        orders = b""
        while True:
            for fd, events in self._epoll.poll(self._timeout_s()):
                if fd == sys.stdin.fileno():
                    data = os.read(fd, 1 << 20)
                    if not data:
                        return
                    *lines, orders = (orders + data).split(b"\n")
                    for line in lines:
                        print(json.dumps(self._obey(json.loads(line))), flush=True)
                elif fd in self._by_fd:
                    self._event(self._by_fd[fd], events)
            self._turn()
            self._open_more()

    def _obey(self, order: dict[str, Any]) -> Any:
        match order["do"]:
            case "go":
                self._queue.extend(self._links)
                self._open_more()
                return {"going": len(self._links)}
            case "progress":
                return {
                    "connected": len(self._by_fd) - len(self._opening),
                    "in_sync": sum(link.talk.story.in_sync is not None for link in self._links),
                    "problems": self.problems,
                }
            case "stories":
                return [[*asdict(link.talk.story).values()] for link in self._links]
            case "told":
                told = [at for device in self._devices() if (at := device.told or 0.0) >= order["since"]]
                return {"count": len(told), "last": max(told, default=0.0)}
            case "arrivals":
                wanted = set(order["ids"])
                return {each: at for d in self._devices() for each, at in d.arrived.items() if each in wanted}
        raise ValueError(f"order {order!r} is not known")

    def _devices(self) -> list[Device]:
        return [link.talk for link in self._links if isinstance(link.talk, Device)]

    def _open_more(self) -> None:
        while self._queue and (not self._plan.at_once or len(self._opening) < self._plan.at_once):
            self._open(self._queue.popleft())

    def _open(self, link: _Link) -> None:
        now = time.monotonic()
        link.talk.story.first = link.talk.story.first or now
        plain = socket.socket()
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.connect_ex((self._plan.host, self._plan.port))
        link.socket, link.shaking, link.unsent = plain, True, b""
        link.deadline = now + PHASE_TIMEOUT_S
        self._opening.add(id(link))
        self._by_fd[plain.fileno()] = link
        self._epoll.register(plain.fileno(), select.EPOLLOUT)
        self._wake_at(link)

    def _event(self, link: _Link, events: int) -> None:
        try:
            if link.shaking:
                self._shake(link)
            if link.shaking:
                return
            if events & select.EPOLLOUT and link.unsent:
                self._send(link, b"")
            self._read(link)
        except (OSError, ConnectionError) as error:
            self._lose(link, error)

    def _shake(self, link: _Link) -> None:
        assert link.socket is not None
        if self._tls is not None:
            if not isinstance(link.socket, ssl.SSLSocket):
                _check(link.socket)
                link.socket = self._tls.wrap_socket(
                    link.socket, do_handshake_on_connect=False, server_hostname=self._plan.host
                )
            try:
                link.socket.do_handshake()
            except ssl.SSLWantReadError:
                self._epoll.modify(link.socket.fileno(), select.EPOLLIN)
                return
            except ssl.SSLWantWriteError:
                self._epoll.modify(link.socket.fileno(), select.EPOLLOUT)
                return
        else:
            _check(link.socket)
        link.shaking = False
        link.deadline = time.monotonic() + PHASE_TIMEOUT_S
        self._epoll.modify(link.socket.fileno(), select.EPOLLIN)
        self._send(link, link.talk.begin())
        self._wake_at(link)

    def _read(self, link: _Link) -> None:
        assert link.socket is not None
        while True:
            try:
                data = link.socket.recv(_READ_BYTES)
            except (ssl.SSLWantReadError, BlockingIOError):
                return
            if not data:
                raise ConnectionResetError("the server closed the connection")
            answer = link.talk.take(data, time.monotonic())
            if link.deadline is not None and link.talk.story.subscribed is not None:
                link.deadline, link.failures = None, 0
                self._opening.discard(id(link))
            self._wake_at(link)
            if answer:
                self._send(link, answer)
            if len(data) < _READ_BYTES and not (isinstance(link.socket, ssl.SSLSocket) and link.socket.pending()):
                return

    def _send(self, link: _Link, data: bytes) -> None:
        assert link.socket is not None
        data = link.unsent + data
        try:
            done = link.socket.send(data) if data else 0
        except (ssl.SSLWantWriteError, BlockingIOError):
            done = 0
        waited, link.unsent = bool(link.unsent), data[done:]
        if bool(link.unsent) != waited:
            self._epoll.modify(link.socket.fileno(), select.EPOLLIN | (select.EPOLLOUT if link.unsent else 0))

    def _lose(self, link: _Link, error: Exception) -> None:
        assert link.socket is not None
        why = type(error).__name__ if link.shaking else f"{type(error).__name__} after the handshake"
        self.problems[why] = self.problems.get(why, 0) + 1
        self._by_fd.pop(link.socket.fileno(), None)
        link.socket.close()
        link.socket = None
        self._opening.discard(id(link))
        link.failures += 1
        link.deadline = (
            time.monotonic() + MIN_DELAY_S + random.uniform(0, min(MAX_DELAY_S, MIN_DELAY_S * 2**link.failures))
        )
        self._wake_at(link)

    def _wake_at(self, link: _Link) -> None:
        at = link.deadline
        if link.socket is not None and not link.shaking and link.talk.wake is not None:
            at = link.talk.wake if at is None else min(at, link.talk.wake)
        if at is not None and at != link.planned:
            heapq.heappush(self._wakes, (at, self._places[id(link)]))
        link.planned = at

    def _turn(self) -> None:
        now = time.monotonic()
        while self._wakes and self._wakes[0][0] <= now:
            at, place = heapq.heappop(self._wakes)
            link = self._links[place]
            if at != link.planned:
                continue
            link.planned = None
            if link.deadline is not None and link.deadline <= now:
                if link.socket is None:
                    self._queue.append(link)
                else:
                    self._lose(link, TimeoutError())
                continue
            try:
                answer = link.talk.turn(now)
                if answer:
                    self._send(link, answer)
            except OSError as error:
                self._lose(link, error)
                continue
            self._wake_at(link)

    def _timeout_s(self) -> float | None:
        if self._queue and (not self._plan.at_once or len(self._opening) < self._plan.at_once):
            return 0.0
        return max(0.0, self._wakes[0][0] - time.monotonic()) if self._wakes else None


def _check(link: socket.socket) -> None:
    problem = link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if problem:
        raise OSError(problem, os.strerror(problem))


def main() -> None:
    """Read the plan, say so, then obey."""
    text = b""
    while not text.endswith(b"\n"):
        text += os.read(sys.stdin.fileno(), 1 << 20)
    fields = json.loads(text)
    fields["people"] = [tuple(each) for each in fields["people"]]
    herd = Herd(Plan(**fields))
    print(json.dumps({"ready": len(fields["people"])}), flush=True)
    herd.run()


if __name__ == "__main__":
    main()
