"""What the postman keeps from one connection to the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edge_runtime.letters.postman import Post, Postman
from edge_runtime.letters.sending import MAX_WAIT_S, RoundTrip


@pytest.mark.parametrize(("path_s", "wait_s"), [(0.2, 1.1), (None, MAX_WAIT_S)])
def test_a_slow_connection_is_forgotten_where_the_next_one_is_known(path_s: float | None, wait_s: float) -> None:
    made: dict[str, Any] = dict.fromkeys(("outbox", "identity", "clock"))
    link: Any = SimpleNamespace(measured=lambda: SimpleNamespace(round_trip_s=path_s))
    postman = Postman(Post(link=link, **made))
    postman.round_trip = RoundTrip().with_sample(40.0)
    postman.begin({})
    assert postman.round_trip.wait_s == pytest.approx(wait_s)
