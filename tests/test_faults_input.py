"""The input rows of the fault matrix: what bad and odd input gets, over every store."""

from __future__ import annotations

import json
import logging
import math
from base64 import b64decode, b64encode, urlsafe_b64encode
from datetime import date, datetime, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint import Checkpointer, CorruptState, ValueTooLarge
from checkpoint.codec import decode, encode
from checkpoint.stores.truto import TrutoStore
from checkpoint.testing import Answer

A, B = {"at": 1}, {"at": 2}


def value_of(text):
    return b64encode(text.encode()).decode()


def stored(store, state_key="run"):
    return {key: decode(entry.value) for key, entry in store.load(state_key).items()}


def nested(depth):
    cursor = {}
    for _ in range(depth):
        cursor = {"a": cursor}
    return cursor


def assert_refused(store, cursor, error, text):
    """Assert that a cursor is refused when it is set, and when one that was read is changed into it; wholly."""
    with Checkpointer("run", store) as cp:
        cp["a"], cp["b"] = A, A
        with pytest.raises(error) as caught:
            cp["a"] = cursor
        assert str(caught.value) == text
        assert (cp["a"], cp.changed) == (A, {"a", "b"})
        cp["a"].update(cursor)
        with pytest.raises(error) as caught:
            cp.commit()
        assert str(caught.value) == text
        assert stored(store) == {}
        cp["a"] = B
    assert stored(store) == {"a": B, "b": A}
    store.commit("run", {"a": None, "b": None})


# 24, 25: names


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "''"),
        (".", "'.'"),
        ("..", "'..'"),
        ("a\0", r"hold control characters or lone surrogates: 'a\x00'"),
        ("a\nb", r"hold control characters or lone surrogates: 'a\nb'"),
        ("\x7f", r"hold control characters or lone surrogates: '\x7f'"),
        ("\x85", r"hold control characters or lone surrogates: '\x85'"),
        ("é\ud800", r"hold control characters or lone surrogates: 'é\ud800'"),
    ],
)
def test_fault_24_a_bad_name_is_refused_before_any_request(store, api, name, said):
    said = f"must not {said}" if "hold" in said else f"must not be {said}"
    with Checkpointer("run", store) as cp:
        cp["a"] = A
        sent = len(api.requests)
        for touch in (
            lambda: cp.__setitem__(name, B),
            lambda: cp.setdefault(name, B),
            lambda: cp.raw.__setitem__(name, "x"),
            lambda: cp.incremental(name, "updated_at"),
            lambda: store.commit("run", {"b": "x", name: "x"}),
        ):
            with pytest.raises(ValueError, match="must not") as caught:
                touch()
            assert str(caught.value) == f"key {said}"
        for touch in (
            lambda: Checkpointer(name, store),
            lambda: store.load(name),
            lambda: store.commit(name, {"a": "x"}),
        ):
            with pytest.raises(ValueError, match="must not") as caught:
                touch()
            assert str(caught.value) == f"state_key {said}"
        assert len(api.requests) == sent
        assert cp.changed == {"a"}
        cp.commit()
    assert stored(store) == {"a": A}


@pytest.mark.parametrize(("name", "kind"), [(None, "NoneType"), (7, "int"), (b"a", "bytes"), (("a",), "tuple")])
def test_fault_24_a_name_that_is_no_str_is_refused_at_once(store, api, name, kind):
    with Checkpointer("run", store) as cp:
        sent = len(api.requests)
        for touch in (lambda: cp.__setitem__(name, B), lambda: store.commit("run", {name: "x"})):
            with pytest.raises(TypeError) as caught:
                touch()
            assert str(caught.value) == f"key must be a str, not {kind}"
        for touch in (lambda: Checkpointer(name, store), lambda: store.load(name)):
            with pytest.raises(TypeError) as caught:
                touch()
            assert str(caught.value) == f"state_key must be a str, not {kind}"
        assert (len(api.requests), cp.changed) == (sent, set())
    assert stored(store) == {}


NAMES = (
    *("a/b", "a%2Fb", "a%252Fb", "a?b", "a#b", "a%b", "a%", "a;b", "a:b", "a@b", "a+b", "a b", "a%20b", "a&b", "a=b"),
    *("...", ".a", "~", "'", '"', "\\", "ü", "u\u0308", "€", "😀", "\u200b", "\u2028", " ", "  ", "A", "a"),
)


def test_fault_25_names_of_any_characters_stay_apart(store):
    cursors = {name: {"name": name} for name in NAMES}
    for state_key in ("a/b?c", "a%2Fb%3Fc"):
        with Checkpointer(state_key, store) as cp:
            cp.update(cursors)
            cp.commit()
            for name in NAMES:
                cp[name] = {"name": name, "in": state_key}
    for state_key in ("a/b?c", "a%2Fb%3Fc"):
        with Checkpointer(state_key, store) as cp:
            assert dict(cp) == {name: {"name": name, "in": state_key} for name in NAMES}
            for name in NAMES[1:]:
                del cp[name]
        assert list(store.load(state_key)) == [NAMES[0]]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1), max_size=4))
def test_fault_25_any_text_is_a_name(truto, names):
    state_key = "run/" + "".join(sorted(names))
    values = {name: f"value of {name}" for name in names - {".", ".."}}
    truto.commit(state_key, values)
    assert {key: entry.value for key, entry in truto.load(state_key).items()} == values


# 26: the token


@pytest.mark.parametrize("token", ["", "sEcReT\nlines", "sEcReT with space", "sEcReT-ü", "sEcReT\0", "sEcReT\r\nX: y"])
def test_fault_26_a_bad_token_is_refused_and_not_shown(token):
    with pytest.raises(ValueError, match="API token") as caught:
        TrutoStore(token=token)
    assert str(caught.value) == (
        "the API token must be printable ASCII without spaces, and not empty (it is not shown here)"
    )
    frame = caught.value.__traceback__.tb_next  # the first is the test's own
    while frame is not None:
        assert "sEcReT" not in repr(frame.tb_frame.f_locals)
        frame = frame.tb_next


def test_fault_26_a_missing_token_says_where_it_is_looked_for(monkeypatch):
    monkeypatch.delenv("TRUTO_API_TOKEN", raising=False)
    with pytest.raises(ValueError, match="no API token") as caught:
        TrutoStore()
    assert str(caught.value) == "no API token: set TRUTO_API_TOKEN, or pass token="


# 27 to 31: cursors


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_fault_27_what_is_no_number_is_refused_when_set(store, number):
    said = f"is {number}, which JSON cannot represent"
    assert_refused(store, {"at": number}, ValueError, f"cursor['at'] {said}")
    assert_refused(store, {"at": [0.5, {"b": (number,)}]}, ValueError, f"cursor['at'][1]['b'][0] {said}")


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64, -(2**63) - 1, 10**100])
def test_fault_28_integers_beyond_64_bits_are_exact(store, number):
    with Checkpointer("run", store) as cp:
        cp["a"] = {"id": number, "at": 0.1}
    value = store.load("run")["a"].value
    assert b64decode(value).decode() == f'{{"id":{number},"at":0.1}}'
    with Checkpointer("run", store) as cp:
        assert cp["a"] == {"id": number, "at": 0.1}
        assert type(cp["a"]["id"]) is int
        cp["a"]["id"] += 1
        assert cp.commit().keys == ("a",)
        assert cp["a"]["id"] == number + 1
    assert stored(store) == {"a": {"id": number + 1, "at": 0.1}}


def test_fault_29_depth_and_cycles_are_refused_without_a_crash(store):
    cycle = {}
    cycle["a"] = [cycle]
    for cursor in (nested(10_000), nested(100_000), cycle):
        with Checkpointer("run", store) as cp:
            cp["a"] = A
            for spoil in (lambda cursor=cursor: cp.__setitem__("a", cursor), lambda cursor=cursor: spoilt(cp, cursor)):
                with pytest.raises(ValueError, match="levels") as caught:
                    spoil()
                assert str(caught.value).startswith(
                    "a cursor must have at most 254 levels, and no cycles: see cursor['a']["
                )
            cp.discard()
    assert stored(store) == {}


def spoilt(cp, cursor):
    cp["a"]["a"] = cursor["a"]
    cp.commit()


@pytest.mark.parametrize("depth", [255, 10_000, 100_000])
def test_fault_29_a_stored_value_too_deep_is_corrupt(store, depth):
    value = value_of('{"a":' * depth + "1" + "}" * depth)
    store.commit("run", {"deep": value, "a": encode(A)})
    with Checkpointer("run", store) as cp:
        with pytest.raises(CorruptState) as caught:
            cp["deep"]
        assert (caught.value.state_key, caught.value.key, caught.value.value) == ("run", "deep", value)
        assert cp["a"] == A
        cp["a"] = B
    assert {key: entry.value for key, entry in store.load("run").items()} == {"deep": value, "a": encode(B)}


@pytest.mark.parametrize(
    ("key", "kind"), [(1, "int"), (1.5, "float"), (True, "bool"), (None, "NoneType"), (b"1", "bytes"), ((), "tuple")]
)
def test_fault_30_keys_that_are_no_str_are_refused(store, key, kind):
    said = f"has the key {key!r}: keys must be str, not {kind}"
    assert_refused(store, {key: 1, "1": 2}, TypeError, f"cursor {said}")
    assert_refused(store, {"at": [{key: 1}]}, TypeError, f"cursor['at'][0] {said}")


TAKES = "use cp.incremental(), which accepts such values in rows"


@pytest.mark.parametrize(
    ("item", "kind", "advice"),
    [
        (datetime(2024, 5, 1, tzinfo=timezone.utc), "datetime", f"its isoformat(), or {TAKES}"),
        (date(2024, 5, 1), "date", f"its isoformat(), or {TAKES}"),
        (Decimal("1.5"), "Decimal", f"its str(), or {TAKES}"),
        (UUID(int=1), "UUID", "its str()"),
        ({1}, "set", "a sorted list"),
        (b"1", "bytes", "text, such as its hex()"),
    ],
)
def test_fault_31_what_json_cannot_hold_is_refused_with_advice(store, item, kind, advice):
    said = f"is a {kind}, which JSON cannot represent: store {advice}"
    assert_refused(store, {"at": item}, TypeError, f"cursor['at'] {said}")
    assert_refused(store, {"at": [1, {"b": item}]}, TypeError, f"cursor['at'][1]['b'] {said}")


@pytest.mark.parametrize("value", [datetime(2024, 5, 1, tzinfo=timezone.utc), date(2024, 5, 1), Decimal("1.50")])
def test_fault_31_streams_take_what_the_advice_says(store, value):
    with Checkpointer("run", store) as cp:
        stream = cp.incremental("rows", "at", row_order="asc")
        assert stream.filter([{"at": value}]) == [{"at": value}]
    assert stored(store) == {"rows": {"at": str(value) if isinstance(value, Decimal) else value.isoformat()}}


# 32 to 34: stored values


def assert_corrupt(store, value, why):
    """Assert that a stored value is an error when it is read as a cursor, is kept, and harms nothing else."""
    store.commit("run", {"odd": value, "a": encode(A)})
    with Checkpointer("run", store) as cp:
        assert (sorted(cp), "odd" in cp, cp.raw["odd"], cp["a"]) == (["a", "odd"], True, value, A)
        for read in (lambda: cp["odd"], lambda: cp.incremental("odd", "at"), lambda: dict(cp)):
            with pytest.raises(CorruptState) as caught:
                read()
            assert (caught.value.state_key, caught.value.key, caught.value.value) == ("run", "odd", value)
            assert str(caught.value) == (
                f"the value of 'odd' in 'run' is not a cursor ({why}), and was left unchanged: "
                "read it with cp.raw['odd'], or set the key to replace it"
            )
        assert cp.changed == set()
        cp["a"] = B
        assert cp.commit().keys == ("a",)
    assert {key: entry.value for key, entry in store.load("run").items()} == {"odd": value, "a": encode(B)}
    with Checkpointer("run", store) as cp:
        cp["odd"] = A
    assert stored(store) == {"odd": A, "a": B}


@pytest.mark.parametrize("text", ['{"a":1,"a":1}', '{"a":1,"a":2}', '{"b":[{"a":1,"a":2}]}', '{"a":1,"\\u0061":2}'])
def test_fault_32_duplicate_keys_in_a_stored_value_are_corrupt(store, text):
    assert_corrupt(store, value_of(text), "its JSON has duplicate keys")


CURSOR = {"a": "\u00ff\u00fe?>", "b": 1}
STANDARD = encode(CURSOR)
URLSAFE = urlsafe_b64encode(b64decode(STANDARD)).decode()


@pytest.mark.parametrize(
    "value",
    [URLSAFE, STANDARD.rstrip("="), URLSAFE.rstrip("="), f" {STANDARD}\n", f"{STANDARD[:9]}\r\n {STANDARD[9:]}"],
    ids=["urlsafe", "unpadded", "urlsafe, unpadded", "white space around", "wrapped"],
)
def test_fault_33_other_base64_spellings_are_read_and_kept(store, value):
    assert "=" in STANDARD
    assert URLSAFE != STANDARD
    store.commit("run", {"a": value})
    with Checkpointer("run", store) as cp:
        assert cp["a"] == CURSOR
        cp["a"] = dict(CURSOR)
        assert cp.changed == set()
        assert not cp.commit()
        assert cp.raw["a"] == value
    assert store.load("run")["a"].value == value


@pytest.mark.parametrize(
    ("junk", "why"),
    [
        ("x", "it is not base64"),
        ("e30=", "it is not base64"),
        ("=", "it is not base64: wrong padding"),
        ("====", "it is not base64: wrong padding"),
        ("\u200b", "it is not base64"),
    ],
)
def test_fault_33_junk_after_the_padding_is_corrupt(store, junk, why):
    assert_corrupt(store, STANDARD + junk, why)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "the text in its base64 is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("2024-05-01T10:00:00Z", "it is not base64"),
        ("hello world", "the text in its base64 is not UTF-8 text"),
        ('{"at":1}', "it is not base64"),
        (value_of("[]"), "it is a JSON array, not an object"),
        (value_of("null"), "it is a JSON null, not an object"),
        (value_of("7"), "it is a JSON number, not an object"),
        (value_of('"x"'), "it is a JSON string, not an object"),
    ],
)
def test_fault_34_an_opaque_value_fails_only_as_a_cursor(store, value, why):
    assert_corrupt(store, value, why)


@pytest.mark.parametrize(
    ("value", "raw"), [(None, "null"), (7, "7"), ({"at": 1}, '{"at":1}'), ([], "[]"), (False, "false")]
)
def test_fault_34_a_value_that_is_no_string_is_opaque(api, truto, value, raw):
    api.store.commit("run", {"a": encode(A)})
    api.script(Answer(200, {"result": [{"key": "odd", "value": value}, {"key": "a", "value": encode(A)}]}))
    with Checkpointer("run", truto) as cp:
        assert (cp.raw["odd"], cp["a"]) == (raw, A)
        with pytest.raises(CorruptState) as caught:
            cp["odd"]
        assert (caught.value.key, caught.value.value) == ("odd", raw)
        cp["a"] = B
    assert stored(api.store) == {"a": B}


# 35, 36

LARGE = 75_000_000
"""Characters that make a stored value of 100 MB."""

SMALL = "store less in one cursor, or use more shards for a group"


def test_fault_35_a_dict_changed_after_it_was_set_is_no_change(store):
    cursor = {"at": [1]}
    with Checkpointer("run", store) as cp:
        cp["a"] = cursor
        cursor["at"].append(2)
        assert cp["a"] == {"at": [1]}
        cp.commit()
        cursor["at"].append(3)
        assert cp.changed == set()
    assert stored(store) == {"a": {"at": [1]}}


def test_fault_35_a_cursor_changed_after_it_was_read_is_a_change(store):
    store.commit("run", {"a": encode({"pages": {"x": 1}})})
    with Checkpointer("run", store) as cp:
        cursor = cp["a"]
        cursor["pages"]["x"] = 2
        assert cp.changed == {"a"}
        assert cp.commit().keys == ("a",)
        cursor["pages"]["x"] = 3
        assert cp.commit().keys == ("a",)
        assert not cp.commit()
        cp.setdefault("b", {})["at"] = 1
        cp.setdefault("b", {})["more"] = 2
    assert stored(store) == {"a": {"pages": {"x": 3}}, "b": {"at": 1, "more": 2}}


def test_fault_36_a_cursor_of_1_mb_works_and_warns(store, caplog):
    caplog.set_level(logging.WARNING, "checkpoint")
    cursor = {"seen": "x" * 1_000_000}
    with Checkpointer("run", store) as cp:
        cp["b"] = {"seen": "x" * 700_000}
        assert caplog.messages == []
        cp["a"] = cursor
    assert caplog.messages == [
        "'run': the value of 'a' is 1333348 bytes: store less in one cursor, or use more shards for a group"
    ]
    with Checkpointer("run", store) as cp:
        assert cp["a"] == cursor


def test_fault_36_a_cursor_of_100_mb_works_in_a_file(tmp_path, caplog):
    url = f"sqlite:///{tmp_path}/state.db"
    with Checkpointer("run", url) as cp:
        cp["a"] = {"seen": "x" * LARGE}
    with Checkpointer("run", url) as cp:
        assert cp["a"] == {"seen": "x" * LARGE}
    assert caplog.messages == [
        "'run': the value of 'a' is 100000016 bytes: store less in one cursor, or use more shards for a group"
    ]


def test_fault_36_a_cursor_of_100_mb_is_too_large_over_http(api, truto):
    with Checkpointer("run", truto) as cp:
        cp["a"] = {"seen": "x" * LARGE}
        with pytest.raises(ValueTooLarge) as caught:
            cp.commit()
        assert (type(caught.value), caught.value.key, caught.value.size) == (ValueTooLarge, "a", 100_000_016)
        assert str(caught.value) == (
            "the value of 'a' is too large for the store: 100,000,016 bytes; store less in one cursor"
        )
        assert cp.changed == {"a"}
        cp["a"] = A
        assert cp.commit().keys == ("a",)
    assert [call.status for call in api.requests if call.method == "POST"] == [413, 200]
    assert json.loads(b64decode(api.store.load("run")["a"].value)) == A
