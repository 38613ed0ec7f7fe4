"""Answers that fit into one message of the bus, whatever they tell of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from services.kit.api.scheduler import TaskView

MAX_ANSWER_BYTES = 900_000
"""Below the bus's 1 MB, with room for the frame."""


def fit(views: Iterable[TaskView], budget: int = MAX_ANSWER_BYTES) -> list[dict[str, Any]]:
    """Views as JSON values, in order, as many and as whole as the budget allows.

    First the reasons of devices that were not chosen go, then all reasons, then the outputs; then the list ends early
    (`show` has every task whole).
    """
    kept = list(views)
    for cut in (_whole, _chosen_only, _without_reasons, _without_outputs):
        sizes = [len(cut(view).model_dump_json()) + 1 for view in kept]
        if sum(sizes) <= budget:
            return [cut(view).model_dump(mode="json") for view in kept]
    room, answer = budget, []
    for view, size in zip(kept, sizes, strict=True):
        room -= size
        if room < 0:
            break
        answer.append(_without_outputs(view).model_dump(mode="json"))
    return answer


def _whole(view: TaskView) -> TaskView:
    return view


def _chosen_only(view: TaskView) -> TaskView:
    chosen = [reason for reason in view.reasons[:1] if reason.device == view.device]
    return view.model_copy(update={"reasons": chosen})


def _without_reasons(view: TaskView) -> TaskView:
    return view.model_copy(update={"reasons": []})


def _without_outputs(view: TaskView) -> TaskView:
    bare = [result.model_copy(update={"output": {}}) for result in view.results]
    return view.model_copy(update={"reasons": [], "results": bare})
