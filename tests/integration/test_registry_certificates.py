"""The registry gives every device a certificate for its neighbours, as long-lived as its other credentials."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from edge_runtime.carriers.certificates import recognise
from schemas.ids import Address
from schemas.registry import Welcome
from services.kit.api.registry import DeviceRequest
from tests.support.platform import LivePlatform
from tests.support.registry import Thing, World

OTHER = Address("home", "other")


def proven(world: World, welcome: Welcome, now: datetime | None = None):
    """What a neighbour makes of it, chain and all."""
    assert welcome.certificate is not None
    assert welcome.neighbours_ca is not None
    certificate = x509.load_pem_x509_certificate(welcome.certificate.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(welcome.neighbours_ca.encode()))
    moment = now or certificate.not_valid_before_utc
    return recognise(certificate.public_bytes(Encoding.DER), world.platform, OTHER, moment)


async def test_enrolment_renewal_and_repetition_bring_certificates(live: LivePlatform) -> None:
    async with World(live) as world:
        cam = Thing("cam")
        first = await world.join(cam)
        neighbour = proven(world, first)
        assert (neighbour.address, neighbour.key) == (cam.address, cam.signer.public_key)
        assert neighbour.expires == first.expires
        renewed = await world.enrolled(cam)
        assert renewed.certificate != first.certificate
        assert renewed.neighbours_ca == first.neighbours_ca
        assert proven(world, renewed).key == cam.signer.public_key
        other = await world.join(Thing("door"))
        assert proven(world, other).address == Address("home", "door")


async def test_a_platform_from_before_gets_its_authority_at_the_next_start_and_keeps_it(live: LivePlatform) -> None:
    state = live.state
    state.neighbours_key.unlink()
    state.neighbours_ca.unlink()
    async with World(live) as world:
        welcome = await world.join(Thing("cam"))
        proven(world, welcome)
        assert welcome.neighbours_ca == state.neighbours_ca.read_text()


async def test_a_revoked_device_gets_no_certificate_any_more(live: LivePlatform) -> None:
    async with World(live) as world:
        cam = Thing("cam")
        await world.join(cam)
        await world.ask("revoke", DeviceRequest(fleet="home", device="cam"))
        refused = await world.enrolled(cam)
        assert refused.refused
        assert refused.certificate is None
