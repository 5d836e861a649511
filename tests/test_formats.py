"""Documents of neighbours: what becomes of them as namespaces, and that nothing is lost either way."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint import Checkpointer, formats
from checkpoint.stores.memory import MemoryStore

CONTEXT = {"context": {"repo": "a/b"}, "replication_key": "at", "replication_key_value": "2024-05-01"}
ORDERS = {
    "partitions": [CONTEXT],
    "starting_replication_value": "2024-01-01",
    "progress_markers": {"Note": "…", "replication_key": "at", "replication_key_value": "2024-05-02"},
}
SINGER = {"bookmarks": {"orders": ORDERS, "people": None}, "currently_syncing": "orders", "version": 3}


def stream(name, state, **more):
    return {"type": "STREAM", "stream": {"stream_descriptor": {"name": name, **more}, "stream_state": state}}


AIRBYTE = [
    stream("users", {"id": 2**70}, namespace="public") | {"sourceStats": {"recordCount": 3.0}},
    stream("orders", None),
    stream("orders", {"at": "2024-05-01"}, namespace=None)
    | {"stream": {"stream_descriptor": {"name": "deals", "namespace": None}, "stream_state": {"at": 1}}},
    {"type": "STREAM", "stream": {"stream_descriptor": {"name": "calls"}}},
]
GLOBAL = {
    "type": "GLOBAL",
    "global": {
        "shared_state": {"lsn": 7},
        "stream_states": [
            {"stream_descriptor": {"name": "users", "namespace": "public"}, "stream_state": {"id": 1}},
            {"stream_descriptor": {"name": "orders"}, "stream_state": None},
        ],
    },
}


@pytest.mark.parametrize(
    ("kind", "document", "cursors"),
    [
        ("singer", {}, {}),
        ("singer", {"bookmarks": {"orders": {"id": 1}}}, {"orders": {"id": 1}}),
        ("singer", {"bookmarks": {}}, {"$singer": {"bookmarks": {}}}),
        (
            "singer",
            SINGER,
            {
                "orders": ORDERS,
                "$singer": {"bookmarks": {"people": None}, "currently_syncing": "orders", "version": 3},
            },
        ),
        ("singer", {"orders": "2024-05-01"}, {"$singer": {"orders": "2024-05-01"}}),
        (
            "singer",
            {
                "bookmarks": {
                    "": {},
                    ".": {},
                    "..": {},
                    "a\nb": {},
                    "$singer": {},
                    "__x": {},
                    "%": {},
                    "5%": {},
                    "%41": {},
                }
            },
            {
                "%": {},
                "%2E": {},
                "%2E%2E": {},
                "a%0Ab": {},
                "%24singer": {},
                "%5F_x": {},
                "%25": {},
                "5%": {},
                "%2541": {},
            },
        ),
        ("airbyte", [], {}),
        (
            "airbyte",
            [stream("a", {"id": 1}), stream("b", {}, namespace="")],
            {"a": {"id": 1}, "%/b": {}, "$airbyte": {"messages": [stream("a", {}), stream("b", {}, namespace="")]}},
        ),
        ("airbyte", [stream("a", {"id": 1}), stream("b", {}, namespace="n")], {"a": {"id": 1}, "n/b": {}}),
        ("airbyte", stream("a", {"id": 1}), {"a": {"id": 1}, "$airbyte": {"message": stream("a", {})}}),
        (
            "airbyte",
            {"type": "STATE", "state": stream("a", {"id": 1})},
            {"a": {"id": 1}, "$airbyte": {"message": {"type": "STATE", "state": stream("a", {})}}},
        ),
        (
            "airbyte",
            GLOBAL,
            {
                "public/users": {"id": 1},
                "$airbyte": {
                    "message": {
                        "type": "GLOBAL",
                        "global": {
                            "shared_state": {"lsn": 7},
                            "stream_states": [
                                {"stream_descriptor": {"name": "users", "namespace": "public"}, "stream_state": {}},
                                {"stream_descriptor": {"name": "orders"}, "stream_state": None},
                            ],
                        },
                    }
                },
            },
        ),
        (
            "airbyte",
            {"type": "LEGACY", "data": {"users": {"id": 1}, "a/b": {}, "cdc": False}},
            {"users": {"id": 1}, "a%2Fb": {}, "$airbyte": {"message": {"type": "LEGACY", "data": {"cdc": False}}}},
        ),
        ("airbyte", {"data": {"cdc": True}}, {"$airbyte": {"message": {"data": {"cdc": True}}}}),
        ("meltano", {"completed": {}, "partial": {}}, {}),
        ("meltano", {}, {"$meltano": {}}),
        (
            "meltano",
            {"completed": {"singer_state": {"bookmarks": {"orders": {"id": 1}}}}, "partial": {}},
            {"orders": {"id": 1}},
        ),
        (
            "meltano",
            {"singer_state": {"bookmarks": {"orders": {"id": 1}}}},
            {"orders": {"id": 1}, "$meltano": {"singer_state": {}}},
        ),
        (
            "meltano",
            {
                "completed": {"singer_state": {"bookmarks": {"a": {"at": {"x": 1, "y": 1}}, "b": {"at": 1}}}},
                "partial": {"singer_state": {"bookmarks": {"a": {"at": {"y": 2}}, "c": {"at": 3}}}},
            },
            {
                "a": {"at": {"x": 1, "y": 2}},
                "b": {"at": 1},
                "c": {"at": 3},
                "$meltano": {
                    "completed": {"singer_state": {"bookmarks": {"a": {"at": {"x": 1, "y": 1}}}}},
                    "partial": {"singer_state": {"bookmarks": {"a": {"at": {"y": 2}}, "c": {"at": 3}}}},
                },
            },
        ),
        ("json", {"orders": {"id": 1}, "$singer": {}}, {"orders": {"id": 1}, "$singer": {}}),
    ],
)
def test_a_document_and_its_namespace(kind, document, cursors):
    before = deepcopy(document)
    assert formats.load(document, kind) == cursors
    assert document == before
    before = deepcopy(cursors)
    assert formats.dump(cursors, kind) == document
    assert cursors == before


def test_airbyte_messages_keep_their_order_and_extras():
    cursors = formats.load(AIRBYTE, "airbyte")
    assert {key: cursor for key, cursor in cursors.items() if key != "$airbyte"} == {
        "public/users": {"id": 2**70},
        "deals": {"at": 1},
    }
    assert formats.dump(cursors, "airbyte") == AIRBYTE


@pytest.mark.parametrize("kind", ["singer", "meltano", "airbyte"])
def test_a_namespace_that_a_job_made_is_a_document(kind):
    cursors = {"orders": {"id": 1}, "people": {"at": "2024-05-01"}}
    document = {
        "singer": {"bookmarks": cursors},
        "meltano": {"completed": {"singer_state": {"bookmarks": cursors}}, "partial": {}},
        "airbyte": [stream("orders", {"id": 1}), stream("people", {"at": "2024-05-01"})],
    }[kind]
    assert formats.dump(cursors, kind) == document
    assert formats.load(document, kind) == cursors


# What jobs change


def test_singer_state_takes_changed_new_and_deleted_streams():
    cursors = formats.load(SINGER, "singer")
    cursors["people"] = {"id": 1}
    del cursors["orders"]
    assert formats.dump(cursors, "singer") == SINGER | {"bookmarks": {"people": {"id": 1}}}


def test_airbyte_messages_take_changed_new_and_deleted_streams():
    cursors = formats.load(AIRBYTE, "airbyte")
    del cursors["public/users"]
    cursors |= {"orders": {"at": 2}, "deals": {"at": 3}, "new": {}}
    assert formats.dump(cursors, "airbyte") == [
        stream("orders", {"at": 2}),
        stream("deals", {"at": 3}, namespace=None),
        AIRBYTE[3],
        stream("new", {}),
    ]


def test_global_state_takes_changed_new_and_deleted_streams():
    cursors = formats.load(GLOBAL, "airbyte")
    del cursors["public/users"]
    cursors |= {"orders": {"at": 2}, "n/new": {}}
    assert formats.dump(cursors, "airbyte")["global"] == {
        "shared_state": {"lsn": 7},
        "stream_states": [
            {"stream_descriptor": {"name": "orders"}, "stream_state": {"at": 2}},
            {"stream_descriptor": {"name": "new", "namespace": "n"}, "stream_state": {}},
        ],
    }
    assert formats.dump({"$airbyte": cursors["$airbyte"]}, "airbyte")["global"]["shared_state"] == {"lsn": 7}


def test_a_single_airbyte_message_becomes_a_list_where_it_has_to():
    cursors = formats.load(stream("a", {"id": 1}), "airbyte")
    assert formats.dump({**cursors, "b": {}}, "airbyte") == [stream("a", {"id": 1}), stream("b", {})]
    del cursors["a"]
    assert formats.dump(cursors, "airbyte") == []


def test_legacy_state_takes_new_streams_but_no_namespaces():
    cursors = formats.load({"type": "LEGACY", "data": {"cdc": 1}}, "airbyte")
    assert formats.dump({**cursors, "a": {}}, "airbyte") == {"type": "LEGACY", "data": {"cdc": 1, "a": {}}}
    with pytest.raises(ValueError, match="'n/a' has a namespace"):
        formats.dump({**cursors, "n/a": {}}, "airbyte")


def test_a_cursor_changed_after_meltano_is_complete():
    document = {
        "completed": {"singer_state": {"bookmarks": {"a": {"at": 1}, "d": {"at": 1}}}},
        "partial": {"singer_state": {"bookmarks": {"a": {"at": 2}, "b": {"at": 2}, "c": {"at": 2}, "d": None}}},
    }
    cursors = formats.load(document, "meltano")
    assert {key: cursors[key] for key in formats.streams(cursors)} == {"a": {"at": 2}, "b": {"at": 2}, "c": {"at": 2}}
    del cursors["c"]
    cursors |= {"a": {"at": 3}, "d": {"at": 3}, "e": {"at": 3}}
    assert formats.dump(cursors, "meltano") == {
        "completed": {"singer_state": {"bookmarks": {"a": {"at": 3}, "d": {"at": 3}, "e": {"at": 3}}}},
        "partial": {"singer_state": {"bookmarks": {"b": {"at": 2}}}},
    }


@pytest.mark.parametrize("completed", [{}, {"completed": None}, {"completed": {"other": 1}}])
def test_meltano_state_without_completed_bookmarks_takes_them(completed):
    cursors = formats.load({"partial": None, **completed}, "meltano") | {"a": {"at": 1}}
    state = (completed.get("completed") or {}) | {"singer_state": {"bookmarks": {"a": {"at": 1}}}}
    assert formats.dump(cursors, "meltano") == {"partial": None, "completed": state}


def test_what_a_job_reads_and_sets_is_what_the_tap_gets():
    with Checkpointer("job", MemoryStore()) as cp:
        cp.update(formats.load(SINGER, "singer"))
        cp.commit()
        cp["orders"]["progress_markers"] = {}
        changed = deepcopy(SINGER)
        changed["bookmarks"]["orders"]["progress_markers"] = {}
        assert formats.dump(cp, "singer") == changed


# What is refused


@pytest.mark.parametrize(
    ("kind", "document", "sentence"),
    [
        ("singer", [], "the document must be an object, not a list"),
        ("singer", None, "the document must be an object, not null"),
        ("singer", {"type": "STATE", "value": {}}, "the document is a STATE message: pass its 'value'"),
        (
            "singer",
            {"bookmarks": {"a": {"at": float("nan")}}},
            "the document is not JSON: the document['bookmarks']['a']['at'] is nan, which JSON cannot represent",
        ),
        ("airbyte", 7, "the document must be an object, not a number"),
        ("airbyte", {}, "the document must have the type STREAM, GLOBAL or LEGACY, or 'data'; it has 'LEGACY'"),
        (
            "airbyte",
            [{"type": "RECORD"}],
            "message 0 must have the type STREAM, GLOBAL or LEGACY, or 'data'; it has 'RECORD'",
        ),
        ("airbyte", [stream("a", {}), stream("a", {})], "message 1 has the state of 'a', as an earlier message has"),
        (
            "airbyte",
            [{"data": {}}, stream("a", {})],
            "message 0 is LEGACY, which holds a whole state, so there can be no other messages",
        ),
        ("airbyte", [stream("a", "x")], "message 0's 'stream''s 'stream_state' must be an object, not text"),
        ("airbyte", {"type": "STREAM"}, "the document's 'stream' must be an object, not null"),
        (
            "airbyte",
            {"type": "GLOBAL", "global": {"stream_states": [{"stream_descriptor": {}}]}},
            "the 'stream_descriptor' of stream_states[0] of the document must have a text 'name'",
        ),
        ("airbyte", {"type": "GLOBAL", "global": {}}, "the document's 'global' must have a list 'stream_states'"),
        ("airbyte", stream("a", {}, namespace=7), "the 'namespace' of the document's 'stream' must be text or null"),
        ("meltano", {"orders": {}}, "the document has none of 'completed', 'partial' and 'singer_state'"),
        ("meltano", {"completed": []}, "'completed' must be an object, not a list"),
        ("meltano", {"singer_state": 1}, "'singer_state' must be an object, not a number"),
        (
            "meltano",
            {"singer_state": {}, "partial": {}},
            "the document has 'singer_state' beside 'completed' or 'partial': it belongs inside these",
        ),
        ("json", {"a": 1}, "the document['a'] must be an object, not a number"),
        ("json", {"": {}}, "key must not be ''"),
        ("json", {"__lease__": {}}, "the key '__lease__' is reserved: no key begins with __"),
        ("xml", {}, "there is no format 'xml': it is one of singer, airbyte, meltano, json"),
    ],
)
def test_an_invalid_document_is_told(kind, document, sentence):
    with pytest.raises(ValueError) as told:
        formats.load(document, kind)
    assert str(told.value) == sentence


@pytest.mark.parametrize(
    ("kind", "cursors", "sentence"),
    [
        ("singer", {"a": 1}, "the cursor of 'a' must be an object, not a number"),
        ("singer", {7: {}}, "key must be a str, not int"),
        (
            "singer",
            {"$airbyte": {}},
            "'$airbyte' holds no stream, and a singer document has no place for it: delete it first",
        ),
        (
            "airbyte",
            {"$singer": {}},
            "'$singer' holds no stream, and an airbyte document has no place for it: delete it first",
        ),
        ("singer", {"a%0a": {}}, "'a%0a' is not how a stream's name is written as a key: 'a%0A' is"),
        ("singer", {"a": {}, "$singer": {"bookmarks": 1}}, "'$singer'['bookmarks'] must be an object, not a number"),
        ("airbyte", {"a/b/c": {}}, "'a/b/c' is not how a stream's name is written as a key: 'a/b%2Fc' is"),
        ("airbyte", {"$airbyte": {}}, "the document in '$airbyte' must be an object, not null"),
        (
            "json",
            {"a": {"at": float("inf")}},
            "the cursor of 'a' is not JSON: the cursor of 'a'['at'] is inf, which JSON cannot represent",
        ),
    ],
)
def test_a_namespace_without_a_document_is_told(kind, cursors, sentence):
    with pytest.raises(ValueError) as told:
        formats.dump(cursors, kind)
    assert str(told.value) == sentence


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (SINGER, "singer"),
        ({"currently_syncing": None}, "singer"),
        (AIRBYTE, "airbyte"),
        (GLOBAL, "airbyte"),
        ({"type": "LEGACY", "data": {}}, "airbyte"),
        ({"type": "STATE", "state": GLOBAL}, "airbyte"),
        ({"completed": {}, "partial": {}}, "meltano"),
        ({"singer_state": {}}, "meltano"),
        ({"orders": {"at": 1}}, "json"),
    ],
)
def test_formats_are_detected(document, kind):
    assert formats.detect(document) == kind


@pytest.mark.parametrize("document", [{"orders": "2024"}, 7, None])
def test_what_could_be_anything_is_told(document):
    with pytest.raises(ValueError, match="could be in any format, so name it"):
        formats.detect(document)


# Everything else

names = st.text(max_size=4) | st.sampled_from(
    [
        "",
        ".",
        "..",
        "__lease__",
        "$singer",
        "$airbyte",
        "$meltano",
        "%",
        "%2F",
        "%41%",
        "a/b",
        "/",
        "\x80%80",
        "bookmarks",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(names, values, max_size=3)
bookmarks = st.dictionaries(
    names,
    st.none()
    | objects
    | st.fixed_dictionaries({}, optional={"partitions": st.just([CONTEXT]), "progress_markers": objects})
    | st.text(max_size=2),
    max_size=4,
)


def with_optional(members, extra=objects):
    """Objects with any of these members, and others."""
    return st.builds(lambda more, known: {**more, **known}, extra, st.fixed_dictionaries({}, optional=members))


singer = with_optional({"bookmarks": bookmarks | values, "currently_syncing": st.none() | names})
part = st.none() | objects | with_optional({"singer_state": singer | values})
meltano = with_optional({"completed": part, "partial": part}).map(
    lambda state: (
        {k: v for k, v in state.items() if k != "singer_state"} | ({} if "completed" in state else {"partial": None})
    )
) | st.fixed_dictionaries({"singer_state": singer})
entries = st.builds(
    lambda name, descriptor, rest: {**rest, "stream_descriptor": {**descriptor, "name": name}},
    names,
    st.fixed_dictionaries({}, optional={"namespace": st.none() | names, "x": values}),
    st.fixed_dictionaries({}, optional={"stream_state": st.none() | objects, "x": values}),
)
beside = st.fixed_dictionaries({}, optional={"sourceStats": objects, "destinationStats": objects, "x": values})


def descriptor(entry):
    return entry["stream_descriptor"]["name"], entry["stream_descriptor"].get("namespace")


@st.composite
def airbyte(draw):
    def wrapped(message):
        return {"type": "STATE", "state": message, **draw(beside)} if draw(st.booleans()) else message

    if draw(st.integers(0, 4)) == 0:
        kind = draw(st.sampled_from([{}, {"type": None}, {"type": "LEGACY"}]))
        message = {**draw(beside), **kind, "data": draw(st.none() | objects)}
        return draw(st.sampled_from([wrapped(message), [message]]))
    unique = draw(st.lists(entries, max_size=5, unique_by=descriptor))
    cut = draw(st.integers(0, len(unique)))
    shared = draw(st.fixed_dictionaries({}, optional={"shared_state": st.none() | objects, "x": values}))
    messages = [wrapped({**draw(beside), "type": "STREAM", "stream": entry}) for entry in unique[cut:]]
    if cut or draw(st.booleans()):
        together = {**draw(beside), "type": "GLOBAL", "global": {**shared, "stream_states": unique[:cut]}}
        messages.insert(draw(st.integers(0, len(messages))), wrapped(together))
    return messages[0] if len(messages) == 1 and draw(st.booleans()) else messages


documents = st.one_of(
    st.tuples(st.just("singer"), singer),
    st.tuples(st.just("meltano"), meltano),
    st.tuples(st.just("airbyte"), airbyte()),
)


def spelled(value):
    """What tells 1 from 1.0 and True."""
    return json.dumps(value, sort_keys=True)


@settings(max_examples=150, deadline=None)
@given(documents)
def test_no_document_loses_anything(drawn):
    kind, document = drawn
    cursors = formats.load(document, kind)
    assert all(isinstance(cursor, dict) for cursor in cursors.values())
    assert spelled(formats.dump(cursors, kind)) == spelled(document)
    assert formats.load(formats.dump(cursors, kind), kind) == cursors
    assert formats.load(formats.dump(cursors, "json"), "json") == cursors
    with Checkpointer("job", MemoryStore()) as cp:  # every key and cursor is one that a store takes
        cp.update(cursors)
        cp.commit()
        assert spelled(formats.dump(cp, kind)) == spelled(document)


@settings(deadline=None)
@given(st.sampled_from(["singer", "meltano", "airbyte"]), st.dictionaries(names, objects, max_size=4))
def test_no_namespace_loses_anything(kind, by_name):
    cursors = {formats.key_of(name, "/" if kind == "airbyte" else ""): cursor for name, cursor in by_name.items()}
    assert spelled(formats.load(formats.dump(cursors, kind), kind)) == spelled(cursors)


@given(st.lists(names | st.text("%0aA./_$\x80é\ud800"), unique=True, max_size=4), st.sampled_from(["", "/"]))
def test_a_name_is_one_key_and_a_key_one_name(drawn, also):
    keys = [formats.key_of(name, also) for name in drawn]
    assert [formats.name_of(key) for key in keys] == drawn
    assert len(set(keys)) == len(keys)
