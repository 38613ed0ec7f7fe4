from __future__ import annotations

from pathlib import Path

from edge_runtime.carriers.explained import as_lines
from edge_runtime.explain import as_text, explanation
from edge_runtime.identity import save_identity
from edge_runtime.settings import CarrierSettings, EdgeSettings
from schemas.bundles import Contents
from tests.support.carriers import Realm, Traveller, meet

CUSTODY = {
    "carried": {"fragments": 3, "bytes": 5_000, "copies": 5, "unverified": 1},
    "own": {"fragments": 2, "copies": 8},
    "arriving": 4,
    "open_bundles": 2,
    "room": {"bytes": 64_000_000, "fragments": 2_048},
}
STATUS = CUSTODY | {
    "transport": "neighbour",
    "reason": "no link for 40 s",
    "neighbours": {
        "in_sight": ["home/ann", "home/bob"],
        "meetings": 7,
        "last_met": {"peer": "home/ann", "at": "2026-11-22T10:00:00+00:00"},
        "refusals": {"given_up": 2, "expired": 1},
    },
    "folder": "/sync",
    "folder_exchange": {"at": "2026-11-22T10:00:05+00:00", "taken": 6, "written": 1, "refused": 9, "left": 2},
}


def test_it_says_which_way_and_with_whom_and_what_is_held() -> None:
    assert [line.split(maxsplit=1) for line in as_lines(STATUS)][1:3] == [
        [
            "custody",
            "3 of 2048 fragments, 5000 of 64000000 bytes of others, 5 copies to give; 1 that nobody here can check",
        ],
        ["own", "2 open bundles, 2 fragments, 8 copies to give; 4 fragments arrived and wait for the rest"],
    ]
    text = "\n".join(as_lines(STATUS))
    assert "way now            neighbour: no link for 40 s" in text
    assert "in sight: home/ann, home/bob; 7 meetings, the last with home/ann at 2026-11-22T10:00:00+00:00" in text
    assert "refused: 1 expired, 2 given_up" in text
    assert "/sync: at 2026-11-22T10:00:05+00:00 took 6 fragments, wrote 1, refused 9, left 2 unread" in text


def test_what_is_off_or_never_was_is_said_too() -> None:
    assert as_lines(None) == ["  off: carriers.enabled is false"]
    text = "\n".join(as_lines(STATUS | {"neighbours": None, "folder": None, "room": {"bytes": 0, "fragments": 2_048}}))
    assert "neighbours.enabled is false" in text
    assert "carriers.carry is false" in text
    assert "`causeway-edge bundle` works with any" in text
    alone = {"in_sight": [], "meetings": 0, "last_met": None, "refusals": {}}
    text = "\n".join(as_lines(STATUS | {"neighbours": alone, "folder_exchange": None}))
    assert "in sight: none; 0 meetings, none yet" in text
    assert "not exchanged with yet" in text


def test_a_status_of_an_agent_of_before_is_told_as_far_as_it_goes() -> None:
    old = {
        "transport": "link",
        "reason": "the link is up",
        "carried": {"fragments": 2, "bytes": 900},
        "open_bundles": 1,
        "neighbours": {"in_sight": [], "meetings": 3, "refusals": {}},
        "folder": "/sync",
    }
    text = "\n".join(as_lines(old))
    assert "2 fragments, 900 bytes of others; the agent that wrote this is of an earlier version" in text
    assert "3 meetings" in text


def test_without_an_agent_it_is_what_lies_on_the_disk(realm: Realm, tmp_path: Path) -> None:
    settings = EdgeSettings(state=tmp_path / "a")
    assert explanation(settings)["carriers"]["carried"]["fragments"] == 0, "a device that is not enrolled"
    a, b = (Traveller(realm, tmp_path / name, name) for name in ("a", "b"))
    save_identity(a.folder.identity, a.identity)
    b.say()
    meet(a, b)
    for parcel in realm.answer(a, Contents()):
        a.custodian.down(parcel.write())
    found = explanation(settings)
    assert found["carriers"]["carried"] == {
        "fragments": 1,
        "bytes": found["carriers"]["carried"]["bytes"],
        "copies": 2,
        "unverified": 0,
    }
    assert found["carriers"]["own"]["copies"] == 2
    assert found["carriers"]["arriving"] == 1
    assert "1 of 2048 fragments" in as_text(found)
    off = settings.model_copy(update={"carriers": CarrierSettings(enabled=False)})
    assert "carriers.enabled is false" in as_text(explanation(off))
    a.close()
    b.close()
