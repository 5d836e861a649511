"""Cursors and their stored text: nothing is lost, and what is not a cursor is refused."""

from __future__ import annotations

import enum
import json
import math
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections import OrderedDict
from datetime import date, datetime, time, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from checkpoint.codec import MAX_DEPTH, canonical, decode, encode, same

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8
)
cursors = st.dictionaries(st.text(), trees, max_size=4)


def value_of(text: str | bytes) -> str:
    return b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def nested(depth: int, **innermost: Any) -> dict[str, Any]:
    cursor = innermost
    for _ in range(depth - 1):
        cursor = {"a": cursor}
    return cursor


def reordered(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: reordered(tree[key]) for key in reversed(tree)}
    return [reordered(item) for item in tree] if isinstance(tree, list) else tree


# Any JSON


@given(cursors)
def test_what_is_written_is_read_back_exactly(cursor: dict[str, Any]) -> None:
    assert repr(decode(encode(cursor))) == repr(cursor)


@given(cursors)
def test_a_value_is_base64_of_compact_json_in_given_order(cursor: dict[str, Any]) -> None:
    text = b64decode(encode(cursor), validate=True).decode()
    assert repr(json.loads(text)) == repr(cursor)
    assert json.loads(text, parse_float=Decimal) == json.loads(json.dumps(cursor), parse_float=Decimal)
    assert encode(json.loads(text)) == encode(cursor)


@given(cursors)
def test_every_spelling_of_a_value_is_read(cursor: dict[str, Any]) -> None:
    value = encode(cursor)
    indented = value_of(json.dumps(cursor, indent=2))
    urlsafe = urlsafe_b64encode(b64decode(value)).decode()
    for spelling in (indented, urlsafe, value.rstrip("="), urlsafe.rstrip("="), f" {value[:5]}\r\n{value[5:]}\n"):
        assert repr(decode(spelling)) == repr(cursor)
        assert same(spelling, value)


@given(cursors, cursors)
def test_values_are_the_same_when_their_cursors_are(cursor: dict[str, Any], other: dict[str, Any]) -> None:
    assert same(encode(cursor), encode(reordered(cursor)))
    assert canonical(cursor) == canonical(reordered(cursor))
    assert same(encode(cursor), encode(other)) == (canonical(cursor) == canonical(other))


@given(cursors, st.data())
def test_a_truncated_value_is_never_read(cursor: dict[str, Any], data: st.DataObject) -> None:
    value = encode(cursor)
    with pytest.raises(ValueError, match=r"it is not|its"):
        decode(value[: data.draw(st.integers(0, len(value.rstrip("=")) - 1))])


def assert_cursor_or_refused(value: str) -> None:
    try:
        cursor = decode(value)
    except ValueError:
        assert not same(value, encode({}))
    else:
        assert repr(decode(encode(cursor))) == repr(cursor)


any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates too


@given(any_text | st.binary().map(value_of) | trees.map(json.dumps).map(value_of))
def test_any_text_is_a_cursor_or_a_value_error(value: str) -> None:
    assert_cursor_or_refused(value)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Return a text of bytes in which up to three pieces are replaced."""
    pieces = st.binary(max_size=4) | st.sampled_from(
        [b"{", b"}", b'"', b"\\u", b"NaN", b"1e999", b"-", b"\xed\xa0\x80"]
    )
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(whole)))
        whole = whole[:start] + draw(pieces) + whole[start + draw(st.integers(0, 4)) :]
    return whole


@given(cursors, st.data())
def test_damaged_json_is_a_cursor_or_a_value_error(cursor: dict[str, Any], data: st.DataObject) -> None:
    assert_cursor_or_refused(value_of(data.draw(damaged(b64decode(encode(cursor))))))


@given(cursors, st.data())
def test_damaged_base64_is_a_cursor_or_a_value_error(cursor: dict[str, Any], data: st.DataObject) -> None:
    assert_cursor_or_refused(data.draw(damaged(encode(cursor).encode())).decode("latin-1"))


# Anything that Python has

anything = st.recursive(
    scalars
    | st.floats()
    | any_text
    | st.binary()
    | st.decimals()
    | st.datetimes()
    | st.uuids()
    | st.sets(st.integers()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(any_text | st.none() | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=6,
)


def as_json(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: as_json(item) for key, item in tree.items()}
    return [as_json(item) for item in tree] if isinstance(tree, list | tuple) else tree


@given(st.dictionaries(any_text, anything, max_size=3))
@example({"a": (1.5e-9,)})
@example({"a": (2**70, [(1e-9,)], {"b": ()})})
def test_whatever_is_written_is_read_back_and_the_rest_refused(cursor: dict[str, Any]) -> None:
    try:
        value = encode(cursor)
    except (TypeError, ValueError) as refused:
        with pytest.raises(type(refused)):
            canonical(cursor)
    else:
        assert repr(decode(value)) == repr(as_json(cursor))
        assert encode(decode(value)) == value
        assert encode(as_json(cursor)) == value
        assert canonical(decode(value)) == canonical(cursor)


@given(st.integers(0, 14_000), st.integers(-1, 1), st.sampled_from([1, -1]))
@example(53, 1, 1)
@example(63, 0, 1)
@example(64, -1, 1)
def test_integers_around_every_power_of_two_are_exact(power: int, beside: int, sign: int) -> None:
    number = sign * 2**power + beside
    assert b64decode(encode({"id": number})).decode() == f'{{"id":{number}}}'
    assert decode(encode({"id": [number, 0.5]})) == {"id": [number, 0.5]}


# Writing


def test_the_form_on_the_wire() -> None:
    assert encode({"updated_at": "2024-05-01T10:00:00Z"}) == "eyJ1cGRhdGVkX2F0IjoiMjAyNC0wNS0wMVQxMDowMDowMFoifQ=="
    assert encode({}) == "e30="
    assert b64decode(encode({"b": 1, "a": [1.5, None, True, "é/😀"]})).decode() == '{"b":1,"a":[1.5,null,true,"é/😀"]}'


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64 - 1, 2**64, -(2**63) - 1, 2**70, 10**400, -(10**400)])
def test_integers_of_any_size_are_exact(number: int) -> None:
    assert b64decode(encode({"id": number})).decode() == f'{{"id":{number}}}'
    assert decode(encode({"id": number})) == {"id": number}


@pytest.mark.parametrize("number", [0.1, 1.0, -0.0, 1e16, 1e22, 5e-324, 1.7976931348623157e308])
def test_floats_are_exact(number: float) -> None:
    assert repr(decode(encode({"at": number}))) == repr({"at": number})
    assert repr(decode(encode({"at": number, "id": 2**70}))) == repr({"at": number, "id": 2**70})


def test_tuples_and_subclasses_are_written_as_what_they_are() -> None:
    class Colour(str, enum.Enum):
        RED = "red"

    class Name(str):
        __slots__ = ()

    assert decode(encode({"a": (1, (2, 2**70))})) == {"a": [1, [2, 2**70]]}
    assert decode(encode(OrderedDict(b=Name("x"), a=Colour.RED))) == {"b": "x", "a": "red"}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(number: float) -> None:
    for cursor, place in (({"a": number}, "cursor['a']"), ({"a": [1, {"b": (number,)}]}, "cursor['a'][1]['b'][0]")):
        with pytest.raises(ValueError, match="JSON") as caught:
            encode(cursor)
        assert str(caught.value) == f"{place} is {number}, which JSON cannot represent"


OR = ", or use cp.incremental(), which accepts such values in rows"


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (
            datetime(2024, 5, 1, tzinfo=timezone.utc),
            f"a datetime, which JSON cannot represent: store its isoformat(){OR}",
        ),
        (date(2024, 5, 1), f"a date, which JSON cannot represent: store its isoformat(){OR}"),
        (Decimal("1.5"), f"a Decimal, which JSON cannot represent: store its str(){OR}"),
        (time(10), "a time, which JSON cannot represent: store its isoformat()"),
        (UUID(int=1), "a UUID, which JSON cannot represent: store its str()"),
        ({1}, "a set, which JSON cannot represent: store a sorted list"),
        (frozenset(), "a frozenset, which JSON cannot represent: store a sorted list"),
        (b"1", "a bytes, which JSON cannot represent: store text, such as its hex()"),
        (bytearray(b"1"), "a bytearray, which JSON cannot represent: store text, such as its hex()"),
        (object, "a type, which JSON cannot represent: store its str()"),
    ],
)
def test_what_json_has_no_form_for_is_refused(item: object, said: str) -> None:
    for cursor, place in (({"a": item}, "cursor['a']"), ({"a": {"b": [2**70, item]}}, "cursor['a']['b'][1]")):
        with pytest.raises(TypeError) as caught:
            encode(cursor)
        assert str(caught.value) == f"{place} is {said}"


@pytest.mark.parametrize(
    ("key", "kind"), [(1, "int"), (1.5, "float"), (True, "bool"), (None, "NoneType"), (b"a", "bytes")]
)
def test_keys_that_are_not_str_are_refused(key: Any, kind: str) -> None:
    for cursor, place in (({"1": 2, key: 1}, "cursor"), ({"a": [{key: 1}]}, "cursor['a'][0]")):
        with pytest.raises(TypeError) as caught:
            encode(cursor)
        assert str(caught.value) == f"{place} has the key {key!r}: keys must be str, not {kind}"


@pytest.mark.parametrize(
    ("cursor", "kind"), [(None, "NoneType"), ([], "list"), ("e30=", "str"), (1, "int"), (b"{}", "bytes")]
)
def test_a_cursor_is_a_dict(cursor: Any, kind: str) -> None:
    for write in (encode, canonical):
        with pytest.raises(TypeError) as caught:
            write(cursor)
        assert str(caught.value) == f"a cursor is a dict, not {kind}"


@pytest.mark.parametrize("cursor", [{"a": "\ud800"}, {"\udfff": 1}, {"a": ["x\ud83d"]}])
def test_lone_surrogates_are_refused(cursor: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Unicode") as caught:
        encode(cursor)
    assert str(caught.value) == "a cursor's text must be valid Unicode: it holds a lone surrogate"


def test_depth_has_a_limit_and_cycles_have_no_form() -> None:
    for deepest in (nested(MAX_DEPTH), nested(MAX_DEPTH, id=2**70)):
        assert decode(encode(deepest)) == deepest
    cycle: dict[str, Any] = {}
    cycle["a"] = [cycle, {"b": cycle}]
    for cursor in (
        nested(MAX_DEPTH + 1),
        nested(MAX_DEPTH + 1, id=2**70),
        nested(10_000),
        cycle,
        {"big": 2**70, "a": cycle},
    ):
        with pytest.raises(ValueError, match="levels") as caught:
            encode(cursor)
        assert str(caught.value).startswith("a cursor must have at most 254 levels, and no cycles: see cursor['a'][")


def test_a_cursor_of_many_megabytes() -> None:
    cursor = {"seen": ["x" * 1_000] * 5_000}
    assert decode(encode(cursor)) == cursor


# Reading


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("", "the text in its base64 is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("hello world", "the text in its base64 is not UTF-8 text"),
        ("12345", "it is not base64"),
        ("2024-05-01T10:00:00Z", "it is not base64"),
        ('{"a":1}', "it is not base64"),
        ("é", "it is not base64"),
        ("e30=\x00", "it is not base64"),
        ("e30=junk", "it is not base64"),
        ("e30=e30=", "it is not base64"),
        ("e3=0", "it is not base64"),
        ("e30==", "it is not base64: wrong padding"),
        ("e30=====", "it is not base64: wrong padding"),
        ("eyJhIjoxfQ=", "it is not base64: wrong padding"),
        ("eyJhIjoxfQ======", "it is not base64: wrong padding"),
        (value_of("null"), "it is a JSON null, not an object"),
        (value_of("true"), "it is a JSON boolean, not an object"),
        (value_of("1"), "it is a JSON number, not an object"),
        (value_of("1.5"), "it is a JSON number, not an object"),
        (value_of('"a"'), "it is a JSON string, not an object"),
        (value_of("[]"), "it is a JSON array, not an object"),
        (value_of("2024-05-01"), "the text in its base64 is not JSON: Extra data: line 1 column 5 (char 4)"),
        (value_of('{"a":1}x'), "the text in its base64 is not JSON: Extra data: line 1 column 8 (char 7)"),
        (value_of(b'{"a":"\xff"}'), "the text in its base64 is not UTF-8 text"),
        (value_of('{"a":1,"a":1}'), "its JSON has duplicate keys"),
        (value_of('{"a":[{"b":1,"b":2}]}'), "its JSON has duplicate keys"),
        (value_of('{"a":NaN}'), "the text in its base64 is not JSON: NaN"),
        (value_of('{"a":-Infinity}'), "the text in its base64 is not JSON: -Infinity"),
        (value_of('{"a":1e400}'), "its number 1e400 is out of range"),
        (value_of('{"a":"\\ud800"}'), "a cursor's text must be valid Unicode: it holds a lone surrogate"),
        (value_of('{"a":' * 10_000 + "1" + "}" * 10_000), "its JSON is nested too deeply"),
    ],
)
def test_what_is_not_a_cursor_says_why(value: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"it|a cursor") as caught:
        decode(value)
    assert str(caught.value) == said
    assert not same(value, encode({}))
    assert same(value, value)


def test_what_could_not_be_written_back_is_not_read() -> None:
    deep = value_of('{"a":' * 255 + "{}" + "}" * 255)
    with pytest.raises(ValueError, match="a cursor must have at most 254 levels"):
        decode(deep)


def test_numbers_are_read_as_they_are_spelled() -> None:
    text = '{"int":1180591620717411303424,"float":1180591620717411303424.0,"one":1.0,"small":1e-7,"zero":-0.0,"e":1E2}'
    assert repr(decode(value_of(text))) == (
        "{'int': 1180591620717411303424, 'float': 1.1805916207174113e+21, "
        "'one': 1.0, 'small': 1e-07, 'zero': -0.0, 'e': 100.0}"
    )


@pytest.mark.parametrize(
    ("cursor", "other"),
    [
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"a": True}),
        ({"a": 0}, {"a": False}),
        ({"a": None}, {}),
        ({"a": 1}, {"a": "1"}),
    ],
)
def test_values_of_different_types_differ(cursor: dict[str, Any], other: dict[str, Any]) -> None:
    assert not same(encode(cursor), encode(other))
    assert canonical(cursor) != canonical(other)


def test_the_order_of_a_list_matters() -> None:
    assert not same(encode({"a": [1, 2]}), encode({"a": [2, 1]}))


def test_canonical_json_is_sorted_at_every_level() -> None:
    assert canonical({"b": {"d": 1, "c": [{"f": 1, "e": 2}]}, "a": 1, "é": 1, "Z": 1}) == (
        '{"Z":1,"a":1,"b":{"c":[{"e":2,"f":1}],"d":1},"é":1}'.encode()
    )
    assert canonical({"b": 2**70, "a": {"d": 1, "c": 1}}) == b'{"a":{"c":1,"d":1},"b":1180591620717411303424}'
