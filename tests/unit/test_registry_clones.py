"""The registry's own judgement of a proof of two bodies."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest
from ulid import ULID

from schemas.envelope import Signer
from schemas.events import Lane
from schemas.ids import Address
from schemas.letters import Place, write_up
from schemas.registry import EventReport
from services.kit.devices import DeviceRecord
from services.kit.errors import RefusedError
from services.registry.clones import judge, release
from services.registry.enrolment import revoke
from tests.support.registry import CAPABILITIES

CAM = Address("harbour", "cam-1")
KEY = Signer.generate()
PLATFORM, E1, E2 = str(ULID()), str(ULID()), str(ULID())
NOW = 1_000_000.0


def record() -> DeviceRecord:
    text = base64.b64encode(KEY.public_key).decode()
    return DeviceRecord(
        fleet=CAM.fleet,
        device=CAM.device,
        public_key=text,
        seal_key=text,
        capabilities=CAPABILITIES,
        enrol_id=E1,
        bus_key="U",
        jwt_issued=0,
        jwt_expires=2_000_000,
        enrolled_at="",
        online=True,
    )


def letter(
    sequence: int = 1,
    *,
    epoch: str = E1,
    lane: Lane = "normal",
    signer: Signer = KEY,
    address: Address = CAM,
    platform: str = PLATFORM,
) -> bytes:
    now = datetime.now(UTC)
    return write_up(
        "event",
        EventReport(name="test", message="hello"),
        Place(epoch, lane, sequence, 1),
        letter_id=str(ULID()),
        address=address,
        platform=platform,
        time=now,
        expires=now - timedelta(days=1),  # a proof does not age
        signer=signer,
    )


def test_two_letters_of_one_number_put_the_device_into_quarantine_with_their_ids() -> None:
    held = judge(record(), PLATFORM, "two_letters", [letter(7), letter(7)], [E1], NOW)
    assert (held.standing, held.online) == ("quarantined", False)
    assert held.quarantine is not None
    assert (held.quarantine.at, held.quarantine.reason, len(set(held.quarantine.letters))) == (NOW, "two_letters", 2)
    assert "number 7 of lane normal" in held.quarantine.message


@pytest.mark.parametrize("with_other", [True, False])
def test_an_old_epoch_is_proven_by_its_letter_beside_one_of_the_newer_or_its_name(with_other: bool) -> None:
    envelopes = [letter(9), *([letter(1, epoch=E2)] if with_other else [])]
    held = judge(record(), PLATFORM, "old_epoch", envelopes, [E1, E2], NOW)
    assert held.quarantine is not None
    assert held.quarantine.epochs == [E1, E2]
    assert f"epoch {E1} although epoch {E2} had begun" in held.quarantine.message


SAME = letter(3)
FORGED = [
    ("two_letters", [SAME, SAME], [E1]),
    ("two_letters", [letter(3)], [E1]),
    ("two_letters", [letter(3), letter(4)], [E1]),
    ("two_letters", [letter(3), letter(3, lane="control")], [E1]),
    ("two_letters", [letter(3), letter(3, epoch=E2)], [E1]),
    ("two_letters", [letter(3), letter(3, signer=Signer.generate())], [E1]),
    ("two_letters", [letter(3), letter(3, address=Address("harbour", "cam-2"))], [E1]),
    ("two_letters", [letter(3, platform=E2), letter(3)], [E1]),
    ("two_letters", [b"{}", letter(3)], [E1]),
    ("old_epoch", [letter(3)], [E1]),
    ("old_epoch", [letter(3), letter(4)], [E1, E2]),
    ("old_epoch", [letter(3, epoch=E2)], [E1, E2]),
    ("old_epoch", [letter(3), letter(1, epoch=E2)], [E1, PLATFORM]),
]


@pytest.mark.parametrize(("proof", "letters", "epochs"), FORGED)
def test_what_does_not_prove_it_is_refused(proof: str, letters: list[bytes], epochs: list[str]) -> None:
    with pytest.raises(RefusedError, match="into quarantine") as refused:
        judge(record(), PLATFORM, proof, letters, epochs, NOW)
    assert refused.value.code == "unproven"


def test_a_release_ends_it_and_is_remembered_and_so_does_a_revocation() -> None:
    held = judge(record(), PLATFORM, "two_letters", [letter(7), letter(7)], [E1], NOW)
    free = release(held, NOW + 5)
    assert (free.standing, free.quarantine, free.released_at) == ("enrolled", None, NOW + 5)
    gone = revoke(held, NOW + 5)
    assert (gone.standing, gone.quarantine) == ("revoked", None)
    for wrong in (record(), free, gone):
        with pytest.raises(RefusedError, match="not in quarantine"):
            release(wrong, NOW)
