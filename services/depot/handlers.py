"""The depot's verbs: register, publish, trust, pack, list, show."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog
from nats.js.errors import NoKeysError
from nats.js.kv import KeyValue

from schemas.aggregator import Artifact
from schemas.depot import TrustAnnouncement
from services.depot.announcer import Announcer
from services.depot.freshness import Freshness
from services.depot.metadata import model_of
from services.depot.packs import Packs
from services.depot.register import Register
from services.depot.repository import Repository
from services.depot.review import Publication, releases, review
from services.kit.api.depot import (
    PackAnswer,
    PackRequest,
    PublishAnswer,
    PublishRequest,
    RegisterRequest,
    ReleaseEvent,
    ReleaseRequest,
    ReleaseView,
    TrustAnswer,
    TrustEvent,
    release_key,
)
from services.kit.artifacts import ArtifactStore, StoreError
from services.kit.errors import NotFoundError, RefusedError
from services.kit.rpc import Nothing

log = structlog.get_logger()

ANSWERS_PER_S = 500.0
"""How many devices may ask for trust per second after an announcement; sets the window in which they spread."""
MAX_SPREAD_S = 3_600.0

Broadcast = Callable[[TrustAnnouncement], Awaitable[None]]


def spread_s(devices: int) -> float:
    """Window in which so many devices ask for trust at random moments."""
    return min(MAX_SPREAD_S, devices / ANSWERS_PER_S)


class Verbs:
    """Handlers of requests; publications happen one at a time."""

    def __init__(
        self,
        repository: Repository,
        freshness: Freshness,
        packs: Packs,
        store: ArtifactStore,
        register: Register,
        bucket: KeyValue,
        announcer: Announcer,
        broadcast: Broadcast,
        now: Callable[[], datetime],
    ) -> None:
        self._repository = repository
        self._freshness = freshness
        self._packs = packs
        self._store = store
        self._register = register
        self._bucket = bucket
        self._announcer = announcer
        self._broadcast = broadcast
        self._now = now
        self._publishing = asyncio.Lock()

    async def register(self, request: RegisterRequest) -> dict[str, object]:
        """Cut an artifact of the store into pieces."""
        return (await self._register.register(request.sha256)).model_dump(mode="json")

    async def trust(self, _: Nothing) -> dict[str, object]:
        """Newest versions, and the digest that tokens pin."""
        repository = self._repository
        answer = TrustAnswer(
            head=repository.head.state(), floors=repository.floors, root_sha256=repository.first_root_sha256
        )
        return answer.model_dump(mode="json")

    async def pack(self, request: PackRequest) -> dict[str, object]:
        """The trust pack for a device that somebody else carries it to."""
        head = self._repository.head
        if self._packs.lacks_nothing(head, request.held):
            return PackAnswer().model_dump(mode="json")
        raw = self._packs.answer(head, request.held)
        return PackAnswer(pack=base64.b64encode(raw).decode()).model_dump(mode="json")

    async def list_all(self, _: Nothing) -> list[dict[str, object]]:
        """Every release."""
        return [view.model_dump(mode="json") for view in self.views()]

    async def show(self, request: ReleaseRequest) -> dict[str, object]:
        """One release."""
        found = [view for view in self.views() if view.model == request.model]
        if request.version is not None:
            found = [view for view in found if view.version == request.version]
        if not found:
            wanted = f"{request.model} {request.version or ''}".strip()
            raise NotFoundError(
                f"show release {wanted}: nothing of that name is published; see `causeway release list`"
            )
        return found[-1].model_dump(mode="json")

    async def publish(self, request: PublishRequest) -> dict[str, object]:
        """Take over finished metadata: check all of it, store it, then put it into effect."""
        async with self._publishing:
            publication = review(self._repository, request.files)
            if publication.root is not None:
                self._freshness.check(publication.root)
            for view in publication.releases:
                await self._check_artifacts(view)
            if publication.files:
                self._write(publication)
                await self._follow_up()
        for view in publication.releases:
            self._announcer.say("release", ReleaseEvent(release=view))
        answer = PublishAnswer(head=self._repository.head.state(), releases=publication.releases)
        return answer.model_dump(mode="json")

    async def renew(self) -> None:
        """Sign snapshot and timestamp anew where they end soon."""
        async with self._publishing:
            if self._freshness.renew(self._now()):
                await self._follow_up()

    async def reconcile(self) -> None:
        """Make bucket `releases` say what the signed metadata says; a crash may have come between."""
        wanted = {release_key(view.model, view.version): view for view in self.views()}
        try:
            held = set(await self._bucket.keys())
        except NoKeysError:
            held = set()
        for key, view in wanted.items():
            value = view.model_dump_json().encode()
            if key not in held or (await self._bucket.get(key)).value != value:
                await self._bucket.put(key, value)
        for key in held - set(wanted):
            await self._bucket.delete(key)

    def views(self) -> list[ReleaseView]:
        """Every release, by model and in the order of its making."""
        found = []
        for role in sorted(self._repository.head.roles):
            model = model_of(role)
            signed = self._repository.model(model) if model is not None else None
            if model is not None and signed is not None:
                found += releases(model, signed)
        return found

    def _write(self, publication: Publication) -> None:
        for name, raw in publication.files.items():
            self._repository.write(name, raw)
        if publication.services is not None:
            self._repository.write_services(publication.services)
        self._repository.reload()
        self._freshness.publish(publication.targets, publication.roles, self._now())

    async def _follow_up(self) -> None:
        head = self._repository.head
        log.info("trust.committed", timestamp=head.timestamp, snapshot=head.snapshot, targets=head.targets)
        await self.reconcile()
        self._announcer.say("trust", TrustEvent(head=head.state()))
        await self._broadcast(TrustAnnouncement(timestamp=head.timestamp, spread_s=0.0))

    async def _check_artifacts(self, view: ReleaseView) -> None:
        await self._check(view, view.artifact.sha256, view.artifact)
        smoke = view.custom.smoke
        if smoke is not None:
            cut = await self._check(view, smoke.sha256, None)
            if (cut.recipe, cut.length) != (smoke.recipe, smoke.length):
                raise RefusedError(
                    f"publish {view.target}: its smoke test's recipe or length is not what the store has"
                )

    async def _check(self, view: ReleaseView, sha256: str, signed: Artifact | None) -> Artifact:
        try:
            cut = await self._register.register(sha256)
        except StoreError as error:
            raise RefusedError(f"publish {view.target}: {error}") from error
        if signed is not None and cut != signed:
            raise RefusedError(
                f"publish {view.target}: the store's artifact cuts to {cut.pieces} pieces, recipe {cut.recipe[:12]}, "
                f"signed are {signed.pieces} with {signed.recipe[:12]}; stage it again with this version"
            )
        return cut
