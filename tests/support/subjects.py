"""Subjects as nats-server matches them."""

from __future__ import annotations


def covers(pattern: str, subject: str) -> bool:
    """Whether a pattern with `*` and `>` covers a subject."""
    wanted, levels = pattern.split("."), subject.split(".")
    for number, level in enumerate(wanted):
        if level == ">":
            return len(levels) > number
        if number >= len(levels) or level not in {"*", levels[number]}:
            return False
    return len(wanted) == len(levels)
