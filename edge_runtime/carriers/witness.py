"""Whether a head is what its origin signed, as far as this device can tell."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from edge_runtime.errors import TrustError
from edge_runtime.identity import Identity
from edge_runtime.logs import Log
from edge_runtime.trust.keyring import Keyring
from schemas.bundles import BundleHead, Parcel, to_platform
from schemas.envelope import Verifier
from schemas.errors import ContractError, EnvelopeError
from schemas.events import device_of, service_source

log = Log(__name__)

COURIER = service_source("courier")


@dataclass(frozen=True, slots=True)
class Witness:
    """Knows the courier by the keyring, a device by its own presence or by the certificate in the head.

    Attributes:
        now: floored, for the ends of certificates.
    """

    keyring: Keyring
    identity: Callable[[], Identity]
    now: Callable[[], datetime]

    def check(self, parcel: Parcel, giver: str, key: bytes | None) -> bool:
        """Whether the origin's signature was verified; False if nobody here can tell.

        Args:
            parcel: with the way as it comes in.
            giver: who brings it.
            key: the giver's raw Ed25519 public key, if it is known.

        Raises:
            TrustError: if it certainly does not hold.
            ContractError: if it certainly does not hold, or the label makes no sense here.
        """
        head = parcel.head
        if head.platform != self.identity().platform:
            raise ContractError(f"bundle {head.id} is of platform {head.platform}", reason="wrong_platform")
        if parcel.way.age_s >= head.lifetime_s:
            raise ContractError(f"bundle {head.id} has outlived its {head.lifetime_s} s", reason="expired")
        if len(parcel.envelope.signatures) != 1:
            # Whoever may add signatures could make any number of good heads out of one.
            raise ContractError(f"bundle {head.id} is not signed by one", reason="malformed")
        if head.origin == COURIER:
            device_of(head.destination)
            return self.courier(parcel)
        device_of(head.origin)
        if not to_platform(head):
            raise ContractError(f"bundle {head.id} of a device is for {head.destination}", reason="wrong_recipient")
        known = key if head.origin == giver and key is not None else self._certified(head)
        if known is None:
            # Not every device has a certificate; the courier knows all of them.
            return False
        verifier = Verifier(known)
        try:
            parcel.envelope.verify({verifier.keyid: verifier})
        except EnvelopeError as error:
            raise ContractError(f"bundle {head.id} of {head.origin}: {error}", reason=error.reason) from error
        return True

    def courier(self, parcel: Parcel) -> bool:
        """Whether the courier's signature holds; False if its key is not known here.

        Raises:
            TrustError: if the head is certainly not the courier's.
        """
        try:
            self.keyring.verify(parcel.envelope, "bundle")
        except TrustError as error:
            if error.reason == "unknown_key":
                return False
            raise
        return True

    def _certified(self, head: BundleHead) -> bytes | None:
        """The key of a bundle's origin, if the registry's authority says so."""
        identity = self.identity()
        if head.certificate is None or identity.neighbours_ca is None:
            return None
        # Only a device that carries for others needs to read certificates.
        from edge_runtime.carriers.certificates import NeighbourError, vouched  # noqa: PLC0415

        try:
            raw = base64.b64decode(head.certificate)
            origin = vouched(raw, identity.neighbours_ca, identity.platform, identity.address, self.now())
        except (NeighbourError, ValueError) as error:
            log.debug("head.not_certified", bundle=head.id, origin=head.origin, message=str(error))
            return None
        return origin.key if origin.address.source == head.origin else None
