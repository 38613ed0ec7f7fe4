"""Letters are verified ahead of their storing: what became of their sender meanwhile still counts."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from nats.aio.msg import Msg
from ulid import ULID

from schemas.envelope import Signer, Verifier
from schemas.errors import ContractError
from schemas.ids import Address
from schemas.letters import Place, write_up
from schemas.registry import Capabilities, EventReport
from schemas.topics import Channel, Topic
from services.courier.up.inspection import Inspected, Inspector
from services.courier.up.verifying import Opened
from services.kit.devices import DeviceRecord, Standing

ADDRESS, PLATFORM, KEY = Address("harbour", "cam-1"), str(ULID()), Signer.generate()
CAPABILITIES = Capabilities(os="linux", arch="x86", python="3", agent="t", cpu_count=1, ram_mb=1, disk_mb=1)


@dataclass
class Book:
    """The device book; a record is another object once it changed."""

    records: dict[Address, DeviceRecord] = field(default_factory=dict)

    def put(self, standing: Standing = "enrolled", key: Signer = KEY) -> None:
        text = base64.b64encode(key.public_key).decode()
        self.records[ADDRESS] = DeviceRecord(
            fleet=ADDRESS.fleet,
            device=ADDRESS.device,
            public_key=text,
            seal_key=text,
            standing=standing,
            capabilities=CAPABILITIES,
            enrol_id=str(ULID()),
            bus_key="U",
            jwt_issued=0,
            jwt_expires=0,
            enrolled_at="",
        )

    def get(self, address: Address) -> DeviceRecord | None:
        return self.records.get(address)

    def verifier(self, address: Address) -> Verifier | None:
        record = self.get(address)
        return Verifier.from_base64(record.public_key) if record and record.standing == "enrolled" else None


def message(subject: str | None = None) -> Msg:
    now = datetime.now(UTC)
    raw = write_up(
        "event",
        EventReport(name="test", message="x"),
        Place(str(ULID()), "normal", 1, 1),
        letter_id=str(ULID()),
        address=ADDRESS,
        platform=PLATFORM,
        time=now,
        expires=now + timedelta(hours=1),
        signer=KEY,
    )
    return Msg(None, subject or Topic(ADDRESS, Channel.LETTER, "event").subject, data=raw)  # type: ignore[arg-type]


async def inspected(inspector: Inspector, one: Msg) -> Inspected:
    [found] = await inspector.inspect([one])
    return found


async def test_a_letter_that_was_verified_before_its_device_was_stopped_is_not_taken() -> None:
    book = Book()
    book.put()
    inspector = Inspector(book, PLATFORM)
    one = await inspected(inspector, message())
    assert inspector.present(one) is one.found
    assert isinstance(one.found, Opened)
    for standing in ("revoked", "quarantined"):
        book.put(standing)
        now = inspector.present(one)
        assert isinstance(now, ContractError)
        assert now.reason == standing
    book.put(key=Signer.generate())
    assert isinstance(inspector.present(one), ContractError), "enrolled anew with another key"
    inspector.close()


async def test_a_letter_whose_device_came_to_be_known_meanwhile_is_taken() -> None:
    book = Book()
    inspector = Inspector(book, PLATFORM)
    one, astray = await inspected(inspector, message()), await inspected(inspector, message("cw.1.what"))
    assert isinstance(inspector.present(one), ContractError)
    book.put()
    assert isinstance(inspector.present(one), Opened)
    assert isinstance(inspector.present(astray), ContractError)
    inspector.close()
