"""Whether verified metadata may replace what was accepted before. Pure: versions in, a refusal or nothing out.

TUF protects from old metadata by its cache alone, and tuf 7.0.1 never fsyncs that. So the accepted versions are kept
apart from it and compared after each refresh.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from edge_runtime.errors import TrustError
from schemas.depot import TrustState


@dataclass(frozen=True, slots=True)
class FreshnessKeys:
    """Ids of the keys that one root gives the two online roles."""

    timestamp: frozenset[str]
    snapshot: frozenset[str]

    def replaced_by(self, newer: FreshnessKeys) -> bool:
        """Whether not one key of either role is left; only rotating both undoes a thief's high versions."""
        return not (self.timestamp & newer.timestamp) and not (self.snapshot & newer.snapshot)


def check_versions(offered: TrustState, floor: TrustState, *, keys_replaced: bool) -> None:
    """Compare top-level versions and roles with a floor.

    Args:
        offered: what a refresh came to.
        floor: what was accepted before, or what the registry's welcome names.
        keys_replaced: the freshness keys of the floor's root are all gone from the offered root, so that the versions
            which they signed say nothing any more (TUF 5.3.11).

    Raises:
        TrustError: `rollback`, naming every version that went back.
    """
    names = ("root",) if keys_replaced else ("root", "timestamp", "snapshot", "targets")
    behind = [(name, getattr(offered, name), getattr(floor, name)) for name in names]
    if not keys_replaced:
        behind += [(f"model {m}", offered.roles[m], v) for m, v in floor.roles.items() if m in offered.roles]
    wrong = [f"{name} {new} < {old}" for name, new, old in behind if new < old]
    if wrong:
        raise TrustError(
            f"accept trust metadata: it is older than what was accepted before ({', '.join(wrong)}); "
            "somebody replays old metadata, or the depot was restored from a backup",
            reason="rollback",
        )


def highest(seen: Mapping[str, int], signed: Mapping[str, int], models: AbstractSet[str]) -> dict[str, int]:
    """Floors of the models after a refresh; a floor never goes down, and is kept for a model that is gone."""
    return {model: max(seen.get(model, 0), signed.get(model, 0)) for model in sorted({*seen, *models})}
