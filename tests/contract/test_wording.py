from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from schemas.ids import EntryPoint, Identifier, Key32, Ulid, Version, Word
from schemas.wording import problems


class Form(BaseModel):
    name: Identifier = "a"
    runner: EntryPoint = "a@1"
    task: Ulid = "01J00000000000000000000000"
    version: Version = "1"
    key: Key32 = "A" * 43 + "="
    sets: dict[Identifier, int] = {}


def said(**values: object) -> str:
    with pytest.raises(ValidationError) as raised:
        Form.model_validate(values)
    return problems(raised.value)


def test_names_are_quoted_with_the_rule_that_they_break() -> None:
    assert said(name="a.b").startswith("name: 'a.b' is not an identifier: use 1 to 63 letters")
    assert said(runner="profile") == "runner: 'profile' is not of the form name@version, as profile@1"
    assert "'x' is not an id of 26 characters" in said(task="x")
    assert "'a b' is not a version" in said(version="a b")
    assert said(sets={"a b": 1}).startswith("sets.a b: 'a b' is not an identifier")


def test_anything_else_stays_out_of_the_message() -> None:
    assert "hunter2" not in said(key="hunter2")


def test_a_name_that_is_not_known_and_a_word_are_told_in_words() -> None:
    class Strict(Form, extra="forbid"):
        event: Word = "a"

    with pytest.raises(ValidationError) as raised:
        Strict.model_validate({"nmae": "a", "event": "Door open"})
    assert "nmae: there is no such name" in problems(raised.value)
    assert "event: 'Door open' is not a word: use up to 63 small letters" in problems(raised.value)


def test_the_number_of_problems_is_bounded() -> None:
    assert said(name=".", runner=".", task=".", version=" ", key="").endswith("; and 2 more")
