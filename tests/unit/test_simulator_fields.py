"""The field expansion grammar."""

from __future__ import annotations

import pytest

from convsync.simulator.fields import FieldSyntaxError, parse_fields


def test_fields_modifiers_and_nested_fields_become_a_tree() -> None:
    tree = parse_fields("id,messages.limit(5).after(x-Y_1=){id,from{name}},updated_time")
    assert [field.name for field in tree.fields] == ["id", "messages", "updated_time"]
    messages = tree.fields[1]
    assert messages.modifier("limit") == "5"
    assert messages.modifier("after") == "x-Y_1="
    assert messages.modifier("before") is None
    assert messages.fields is not None
    assert messages.fields.source == "id,from{name}"
    nested = messages.fields.fields[1].fields
    assert nested is not None
    assert [field.name for field in nested.fields] == ["name"]


def test_blanks_do_not_matter_and_modifiers_may_follow_the_braces() -> None:
    tree = parse_fields(" id , messages { id , message } .limit( 3 ) ")
    assert [field.name for field in tree.fields] == ["id", "messages"]
    assert tree.fields[1].modifier("limit") == "3"
    assert tree.fields[1].fields is not None
    assert tree.fields[1].fields.source == "id,message"


def test_a_field_that_is_given_twice_counts_once() -> None:
    tree = parse_fields("id,messages.limit(1),messages.limit(2)")
    assert [field.name for field in tree.fields] == ["id", "messages"]
    assert tree.fields[1].modifier("limit") == "2"


@pytest.mark.parametrize(
    "text",
    [
        ",",
        "id,",
        ",id",
        "id,,updated_time",
        "messages{",
        "messages{}",
        "messages{id",
        "messages{id}}",
        "messages.limit",
        "messages.limit(5",
        "messages.limit(5)x",
        "id updated_time",
        "ID",
        "1d",
        "id;drop",
        "{id}",
        "a{b}{c}",
        "a{" * 20 + "b" + "}" * 20,
    ],
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(FieldSyntaxError) as refused:
        parse_fields(text)
    assert "Syntax error" in refused.value.message
