"""Publishing: the artifacts into the store, then the finished metadata to the depot."""

from __future__ import annotations

from causeway.release.files import ReleaseFile
from services.kit import rpc
from services.kit.api.depot import PublishAnswer, PublishRequest
from services.kit.artifacts import ArtifactStore
from services.kit.bus import Bus
from services.kit.errors import RefusedError

PUBLISH_TIMEOUT_S = 120.0
"""The depot fetches and cuts the artifact before it answers."""


async def publish(bus: Bus, store: ArtifactStore, platform: str, release: ReleaseFile) -> PublishAnswer:
    """Upload and publish; repeating it after a lost answer is harmless.

    Raises:
        RefusedError: if signatures are missing, a file changed since it was staged, or the depot refuses.
        StoreError: if the store does not take an artifact.
    """
    if release.platform != platform:
        raise RefusedError(
            f"publish {release.model}: it was staged for platform {release.platform}, this is {platform}"
        )
    if release.missing:
        raise RefusedError(
            f"publish {release.model}: {'; '.join(release.missing)}; `causeway release sign FILE --key KEY` adds them"
        )
    for artifact in release.artifacts:
        stored = await store.put_file(artifact.path)
        if stored != artifact.sha256:
            raise RefusedError(
                f"publish {release.model}: {artifact.path} changed since it was staged "
                f"(sha256 {stored[:12]}, signed is {artifact.sha256[:12]}); stage it again"
            )
    files = {name: role.parsed().to_bytes().decode() for name, role in release.roles.items()}
    answer = await rpc.call(bus, "depot", "publish", PublishRequest(files=files), timeout_s=PUBLISH_TIMEOUT_S)
    return PublishAnswer.model_validate(answer)
