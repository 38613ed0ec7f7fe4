"""Who said this: keys of the services document, and nothing else, count."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import TrustError
from edge_runtime.trust.floors import FreshnessKeys, check_versions, highest
from edge_runtime.trust.keyring import Keyring
from schemas.depot import TrustState
from schemas.envelope import Signer, parse, seal
from tests.support.trust_world import NOW, World

VERSIONS = st.integers(0, 5)
STATES = st.builds(
    TrustState,
    root=VERSIONS,
    timestamp=VERSIONS,
    snapshot=VERSIONS,
    targets=VERSIONS,
    roles=st.dictionaries(st.sampled_from(["a", "b"]), VERSIONS),
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World.make(tmp_path)
    made.take()
    return made


def test_each_key_signs_its_own_kinds_only(world: World) -> None:
    keyring = Keyring(world.device)
    assert keyring.verify(parse(seal(b"{}", world.ota)), "assign").service == "ota"
    with pytest.raises(TrustError, match=r"signed by the key of scheduler .* may sign task only") as raised:
        keyring.verify(parse(seal(b"{}", world.scheduler)), "assign")
    assert raised.value.reason == "key_not_allowed"
    with pytest.raises(TrustError) as raised:
        keyring.verify(parse(seal(b"{}", Signer.generate())), "assign")
    assert raised.value.reason == "unknown_key"
    forged = seal(b"[]", world.ota).replace(base64.b64encode(b"[]"), base64.b64encode(b"{}"))
    with pytest.raises(TrustError) as raised:
        keyring.verify(parse(forged), "assign")
    assert raised.value.reason == "bad_signature"


def test_before_the_first_refresh_nobody_is_believed(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "nothing")
    assert not keyring.ready
    assert keyring.age_s(NOW) is None
    assert keyring.state(["digits"]) == TrustState(root=0, roles={"digits": 0})
    with pytest.raises(TrustError) as raised:
        keyring.verify(parse(seal(b"{}", Signer.generate())), "assign")
    assert raised.value.reason == "unknown_key"


def test_a_reload_brings_what_a_refresh_wrote(world: World) -> None:
    keyring = Keyring(world.device)
    world.release("digits", "0.1.0")
    world.take()
    assert keyring.state().roles == {}
    keyring.reload()
    assert keyring.state(["digits", "faces"]).roles == {"digits": 1, "faces": 0}
    assert keyring.age_s(NOW) == 0


def test_it_costs_the_agent_no_heavy_library() -> None:
    code = (
        "import sys; import edge_runtime.trust.keyring, edge_runtime.parcels.fetching;"
        "heavy = {'tuf', 'securesystemslib', 'zstandard', 'numpy'} & set(sys.modules); sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


@given(STATES, STATES, st.booleans())
def test_whatever_is_accepted_is_nowhere_older(offered: TrustState, floor: TrustState, replaced: bool) -> None:
    try:
        check_versions(offered, floor, keys_replaced=replaced)
    except TrustError:
        return
    assert offered.root >= floor.root
    if not replaced:
        assert offered.timestamp >= floor.timestamp
        assert offered.snapshot >= floor.snapshot
        assert all(offered.roles[model] >= floor.roles[model] for model in offered.roles.keys() & floor.roles.keys())


@given(*[st.dictionaries(st.sampled_from("abc"), VERSIONS)] * 2)
def test_a_floor_only_rises(seen: dict[str, int], signed: dict[str, int]) -> None:
    after = highest(seen, signed, set(signed))
    assert after.keys() == seen.keys() | signed.keys()
    assert all(after[model] >= max(seen.get(model, 0), signed.get(model, 0)) for model in after)


def test_rotating_one_freshness_key_is_not_enough() -> None:
    old = FreshnessKeys(frozenset("t"), frozenset("s"))
    assert not old.replaced_by(FreshnessKeys(frozenset("T"), frozenset("s")))
    assert not old.replaced_by(FreshnessKeys(frozenset("T"), frozenset("sS")))
    assert old.replaced_by(FreshnessKeys(frozenset("T"), frozenset("S")))
