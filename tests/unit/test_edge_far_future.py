"""A stolen service key proves a far future to a device without a clock: rotating that key heals the device."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from edge_runtime.errors import TrustError
from edge_runtime.trust.keyring import Keyring
from schemas.events import utc
from schemas.trust import SERVICES_TARGET, ServicesDocument
from services.depot.metadata import file_of
from tests.support.trust_world import DAY, NOW, PLATFORM, World, service_key

FAR = NOW + 5_000 * DAY
UNSET = utc(1_000.0)
"""The clock of a device that lost its battery."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World.make(tmp_path)
    made.take()
    return made


def rotate_ota(world: World) -> None:
    _, fresh = service_key("ota", ["assign"])
    keys = [key for key in world.repository.document().keys if key.service != "ota"]
    raw = ServicesDocument(platform=PLATFORM, keys=[*keys, fresh]).model_dump_json().encode()
    targets = world.repository.targets()
    targets.version += 1
    targets.targets[SERVICES_TARGET] = TargetFile.from_data(SERVICES_TARGET, raw, ["sha256"])
    world._write(file_of("targets", targets.version), targets, "targets")
    world.repository.write_services(raw)
    world.commit(targets=targets.version)


def proven(world: World, **times: datetime) -> dict[str, str]:
    return {getattr(world, name).keyid: at.isoformat() for name, at in times.items()}


def test_a_time_that_a_lost_key_proved_does_not_keep_the_key_from_being_taken_back(world: World) -> None:
    proofs = proven(world, ota=FAR, scheduler=NOW)
    rotate_ota(world)
    world.take(now=FAR, system=UNSET.isoformat(), proven=proofs)
    assert world.ota.keyid not in Keyring(world.device).keys


def test_a_time_that_a_listed_key_proved_still_counts(world: World) -> None:
    proofs = proven(world, ota=FAR, scheduler=FAR)
    rotate_ota(world)
    with pytest.raises(TrustError) as raised:
        world.take(now=FAR, system=UNSET.isoformat(), proven=proofs)
    assert raised.value.reason == "expired"
    assert world.ota.keyid in Keyring(world.device).keys


def test_a_synchronised_clock_is_not_turned_back(world: World) -> None:
    rotate_ota(world)
    with pytest.raises(TrustError) as raised:
        world.take(now=FAR, system=FAR.isoformat(), proven=proven(world, ota=FAR))
    assert raised.value.reason == "expired"
