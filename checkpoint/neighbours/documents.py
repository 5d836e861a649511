"""Turn state documents of other tools into namespaces and back, without loss.

    singer   a STATE value: what a tap gets as `--state` and a target writes to its standard output
    airbyte  an AirbyteStateMessage (STREAM, GLOBAL or LEGACY), or the list of them that a source gets as `--state`
    meltano  a state file, `{"completed": …, "partial": …}`; or `{"singer_state": …}`, as `meltano state get` prints it
    json     `{key: cursor}`: the namespace as it is

A document is what `json.loads` returns for it. A namespace is a dict of key → cursor. Each stream whose state is an
object becomes a key with that object as its cursor, which a job reads as `cp["orders"]`. The rest of the document
becomes the cursor of one further key, `$singer`, `$airbyte` or `$meltano`. This key is left out if there is no rest,
and a job that starts without a document does not need it.

The key of a stream is its name; with an Airbyte namespace it is `namespace/name`. Characters that a key cannot have, or
that would make it another key, are percent-encoded: control characters, lone surrogates, `.` and `..` and the empty
name (as `%`), a leading `$` or `__`, a `/` in Airbyte's names, and a `%` before two hexadecimal digits.

The order of an object's members is not kept; the order of a list of messages is.

Sources: the Singer specification (`hub.meltano.com/singer/spec`), `airbyte_protocol.yaml` of the Airbyte protocol,
`MeltanoState` in `meltano.core.state_store.base`.
"""

from __future__ import annotations

import re
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args
from urllib.parse import unquote_to_bytes

from checkpoint import codec
from checkpoint.codec import Cursor
from checkpoint.stores.base import check_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Format: TypeAlias = Literal["singer", "airbyte", "meltano", "json"]
"""The format of a document."""

FORMATS: tuple[Format, ...] = get_args(Format)
"""The formats, by name."""

Cursors: TypeAlias = dict[str, Cursor]
"""A namespace: key → cursor."""


def load(document: Any, format: Format) -> Cursors:
    """Return the namespace that a document describes; `document` is not changed.

    Raises:
        ValueError: the document does not have that format; the message says what is wrong, and where.

    """
    read, write = _functions(format)
    cursors: Cursors
    rest: Cursor | None
    _check_json(document, "the document")
    cursors, rest = read(deepcopy(document))
    for key in cursors:
        _check_key(key)
    if rest is not None and write(deepcopy(cursors), None) != document:
        cursors[f"${format}"] = rest
    return cursors


def dump(cursors: Mapping[str, Cursor], format: Format) -> Any:
    """Return the document that describes a namespace; for a namespace from `load`, the same document.

    Keys that were changed, added or deleted since `load` are changed, added or deleted in the document. For Meltano a
    changed cursor becomes complete state, and the partial state of its stream is dropped.

    Raises:
        ValueError: the format has no place for a key or a cursor; the message says which.

    """
    _, write = _functions(format)
    for key, cursor in cursors.items():
        _check_key(key)
        _check_json(_object_at(cursor, f"the cursor of {key!r}"), f"the cursor of {key!r}")
    copies = deepcopy(dict(cursors))
    if format == "json":
        return write(copies, None)
    rest = copies.pop(f"${format}", None)
    for key in copies:
        if key.startswith("$"):
            a = "an" if format == "airbyte" else "a"
            raise ValueError(f"{key!r} holds no stream, and {a} {format} document has no place for it: delete it first")
    return write(copies, rest)


def detect(document: Any) -> Format:
    """Return the format of a document, judged by its outermost members.

    Raises:
        ValueError: the members do not show it; the message says which members would.

    """
    if isinstance(document, list) or _is_message(document):
        return "airbyte"
    if isinstance(document, dict):
        members = cast("Cursor", document)
        if members.keys() & {"completed", "partial", "singer_state"}:
            return "meltano"
        if members.keys() & {"bookmarks", "currently_syncing"}:
            return "singer"
        if all(isinstance(cursor, dict) for cursor in members.values()):
            return "json"
    raise ValueError(
        "this document could be in any format, so name it: Singer's has 'bookmarks', Airbyte's is a list or has a "
        "'type', Meltano's has 'completed', 'partial' or 'singer_state', and in plain JSON every member is an object"
    )


def streams(cursors: Iterable[str]) -> list[str]:
    """Return the keys that hold the cursor of a stream: all keys that do not begin with `$`."""
    return [key for key in cursors if not key.startswith("$")]


def key_of(name: str, also: str = "") -> str:
    """Return the key for a name of another tool; characters in `also` are percent-encoded too."""
    if name in {"", ".", ".."}:
        return name.replace(".", "%2E") or "%"
    unsafe = rf"\A[$]|\A_(?=_)|[\x00-\x1f\x7f-\x9f\ud800-\udfff{re.escape(also)}]|%(?=[0-9A-Fa-f]{{2}})|\A%\Z"
    return re.sub(unsafe, lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", _LONE)), name)


def name_of(key: str) -> str:
    """Return the name for which `key_of` returned a key."""

    def decoded(found: re.Match[str]) -> str:
        try:
            return unquote_to_bytes(found[0]).decode("utf-8", _LONE)
        except UnicodeDecodeError:
            return found[0]  # not written by key_of

    return "" if key == "%" else re.sub("(?:%[0-9A-Fa-f]{2})+", decoded, key)


_LONE = "surrogatepass"  # the error handler that lets lone surrogates through


# Plain JSON


def _load_json(document: Any) -> tuple[Cursors, None]:
    members = _object_at(document, "the document")
    return {key: _object_at(cursor, f"the document[{key!r}]") for key, cursor in members.items()}, None


def _dump_json(cursors: Cursors, _rest: Cursor | None) -> Any:
    return cursors


# Singer


def _load_singer(document: Any) -> tuple[Cursors, Cursor]:
    state = _object_at(document, "the document")
    if state.keys() == {"type", "value"} and state["type"] == "STATE":
        raise ValueError("the document is a STATE message: pass its 'value'")
    return _keyed(_take(state)), state


def _dump_singer(cursors: Cursors, rest: Cursor | None) -> Any:
    return _put({} if rest is None else rest, _under_names(cursors), "'$singer'")


def _take(state: Cursor) -> Cursors:
    """Take the bookmarks that are cursors out of a Singer state, and `bookmarks` too if it is empty then."""
    bookmarks = _bookmarks(state)
    taken: Cursors = {name: cursor for name, cursor in bookmarks.items() if isinstance(cursor, dict)}
    for name in taken:
        del bookmarks[name]
    if taken and not bookmarks:
        del state["bookmarks"]
    return taken


def _put(state: Cursor, bookmarks: Cursors, where: str) -> Cursor:
    if bookmarks:
        state["bookmarks"] = {**_object_at(state.get("bookmarks", {}), f"{where}['bookmarks']"), **bookmarks}
    return state


def _bookmarks(state: Cursor) -> Cursor:
    found = state.get("bookmarks")
    return cast("Cursor", found) if isinstance(found, dict) else {}


# Meltano


def _load_meltano(document: Any) -> tuple[Cursors, Cursor]:
    state = _object_at(document, "the document")
    if state and not state.keys() & {"completed", "partial", "singer_state"}:
        raise ValueError("the document has none of 'completed', 'partial' and 'singer_state'")
    completed, partial = _completed(state), _bookmarks(_inner(state, "partial"))
    # The two parts of one stream have a meaning only together, so both stay as they are.
    finished = _bookmarks(completed)
    both = {name: finished.pop(name) for name in partial if name in finished}
    cursors = _take(completed)
    _put(completed, both, "the document")
    for name, bookmark in partial.items():
        if isinstance(bookmark, dict):
            cursors[name] = _merged(cast("Cursor", bookmark), both.get(name))
    return _keyed(cursors), state


def _dump_meltano(cursors: Cursors, rest: Cursor | None) -> Any:
    bookmarks = _under_names(cursors)
    if rest is None:
        return {"completed": {"singer_state": {"bookmarks": bookmarks}} if bookmarks else {}, "partial": {}}
    finished, partial = _bookmarks(_completed(rest)), _bookmarks(_inner(rest, "partial"))
    for name, bookmark in list(partial.items()):
        if isinstance(bookmark, dict):
            before = _merged(cast("Cursor", bookmark), finished.get(name))
            if name in bookmarks and codec.canonical(bookmarks[name]) == codec.canonical(before):
                del bookmarks[name]  # both parts say it
                continue
        elif name not in bookmarks:
            continue
        del partial[name]
        finished.pop(name, None)
    if bookmarks:
        _put(_place_of_completed(rest), bookmarks, "'$meltano'")
    return rest


def _completed(state: Cursor) -> Cursor:
    """Return the completed Singer state of a Meltano state; an empty one if there is none."""
    if "singer_state" not in state:
        return _inner(state, "completed")
    if state.keys() & {"completed", "partial"}:
        raise ValueError("the document has 'singer_state' beside 'completed' or 'partial': it belongs inside these")
    return _object_at(state["singer_state"], "'singer_state'")


def _inner(state: Cursor, part: str) -> Cursor:
    holder = state.get(part)
    found = None if holder is None else _object_at(holder, repr(part)).get("singer_state")
    return cast("Cursor", found) if isinstance(found, dict) else {}


def _place_of_completed(state: Cursor) -> Cursor:
    """Return the completed Singer state, to put bookmarks into; make it if there is none."""
    if "singer_state" in state:
        return _completed(state)
    if state.get("completed") is None:
        state["completed"] = {}
    return _object_at(_object_at(state["completed"], "'completed'").setdefault("singer_state", {}), "'singer_state'")


def _merged(partial: Cursor, completed: Any) -> Cursor:
    """Return what Meltano gives to the next run: partial state over completed state, at every level."""
    under = cast("Cursor", completed) if isinstance(completed, dict) else {}
    over = {
        name: _merged(cast("Cursor", value), under.get(name)) if isinstance(value, dict) else value
        for name, value in partial.items()
    }
    return {**under, **over}


# Airbyte


def _load_airbyte(document: Any) -> tuple[Cursors, Cursor]:
    cursors: Cursors = {}
    seen: set[str] = set()
    messages = _messages(document)
    for where, message in messages:
        state = _state_in(message, where)
        if _is_legacy(state):
            if len(messages) > 1:
                raise ValueError(f"{where} is LEGACY, which holds a whole state, so there can be no other messages")
            data: Cursor = state.get("data") or {}
            names = [name for name, cursor in data.items() if isinstance(cursor, dict)]
            cursors.update((_stream_key(name), data.pop(name)) for name in names)
        for entry in _stream_states(state):
            key = _key_of_entry(entry)
            if key in seen:
                raise ValueError(f"{where} has the state of {key!r}, as an earlier message has")
            seen.add(key)
            if entry.get("stream_state") is not None:
                cursors[key] = entry["stream_state"]
                entry["stream_state"] = {}  # an object: the state is in its key; null or absent: there is none
    return cursors, {"messages" if isinstance(document, list) else "message": document}


def _dump_airbyte(cursors: Cursors, rest: Cursor | None) -> Any:
    if rest is None:
        return [_stream_message(key, cursors[key]) for key in sorted(cursors)]
    document = rest.get("messages", rest.get("message"))
    kept: list[Any] = []
    states: list[Cursor] = []
    for where, message in _messages(document):
        state = _state_in(message, f"{where} in '$airbyte'")
        states.append(state)
        filled = [entry for entry in _stream_states(state) if _fill(entry, cursors)]
        if _message_type(state) == "GLOBAL":
            state["global"]["stream_states"] = filled
        if filled or _message_type(state) != "STREAM":
            kept.append(message)
    for key in sorted(cursors):
        _add_stream(key, cursors[key], states, kept)
    return kept[0] if "message" in rest and len(kept) == 1 else kept


def _fill(entry: Cursor, cursors: Cursors) -> bool:
    """Give a stream's entry its cursor, taken out of `cursors`; return False if the cursor was deleted."""
    key = _key_of_entry(entry)
    if key in cursors:
        entry["stream_state"] = cursors.pop(key)
        return True
    return entry.get("stream_state") is None


def _add_stream(key: str, cursor: Cursor, states: list[Cursor], messages: list[Any]) -> None:
    """Add a stream that is in no message."""
    descriptor = _descriptor_of(key)
    for state in states:
        if _is_legacy(state):
            if "namespace" in descriptor:
                raise ValueError(f"{key!r} has a namespace, which LEGACY state has no place for: delete '$airbyte'")
            state["data"] = {**(state.get("data") or {}), descriptor["name"]: cursor}
            return
        if _message_type(state) == "GLOBAL":
            state["global"]["stream_states"].append({"stream_descriptor": descriptor, "stream_state": cursor})
            return
    messages.append(_stream_message(key, cursor))


def _messages(document: Any) -> list[tuple[str, Any]]:
    """Return the messages of a document, each with a text that says where it is."""
    if not isinstance(document, list):
        return [("the document", document)]
    return [(f"message {number}", message) for number, message in enumerate(cast("Iterable[Any]", document))]


def _state_in(message: Any, where: str) -> Cursor:
    """Return the AirbyteStateMessage that a message is or contains, after checking it."""
    state = _object_at(message, where)
    if state.get("type") == "STATE":
        state = _object_at(state.get("state"), f"{where}'s 'state'")
    kind = _message_type(state)
    if kind == "STREAM":
        _check_entry(state.get("stream"), f"{where}'s 'stream'")
    elif kind == "GLOBAL":
        shared = _object_at(state.get("global"), f"{where}'s 'global'")
        _check_optional(shared, "shared_state", f"{where}'s 'global'")
        if not isinstance(shared.get("stream_states"), list):
            raise ValueError(f"{where}'s 'global' must have a list 'stream_states'")
        for number, entry in enumerate(shared["stream_states"]):
            _check_entry(entry, f"stream_states[{number}] of {where}")
    elif kind == "LEGACY" and ("type" in state or "data" in state):
        _check_optional(state, "data", where)
    else:
        raise ValueError(f"{where} must have the type STREAM, GLOBAL or LEGACY, or 'data'; it has {kind!r}")
    return state


def _check_entry(entry: Any, where: str) -> None:
    descriptor = _object_at(_object_at(entry, where).get("stream_descriptor"), f"the 'stream_descriptor' of {where}")
    if not isinstance(descriptor.get("name"), str):
        raise ValueError(f"the 'stream_descriptor' of {where} must have a text 'name'")  # bad data
    if not isinstance(descriptor.get("namespace"), str | None):
        raise ValueError(f"the 'namespace' of {where} must be text or null")
    _check_optional(entry, "stream_state", where)


def _check_optional(holder: Cursor, member: str, where: str) -> None:
    if holder.get(member) is not None:
        _object_at(holder[member], f"{where}'s {member!r}")


def _is_message(document: Any) -> bool:
    """Return whether a document looks like an AirbyteStateMessage, or like the message that contains one."""
    if not isinstance(document, dict):
        return False
    kind = cast("Cursor", document).get("type")
    return kind in ("STREAM", "GLOBAL", "LEGACY") or (kind == "STATE" and "state" in document)


def _message_type(state: Cursor) -> Any:
    """Return the type of a message; without a type it is LEGACY (AirbyteStateMessage in airbyte_protocol.yaml)."""
    return "LEGACY" if state.get("type") is None else state["type"]


def _is_legacy(state: Cursor) -> bool:
    return bool(_message_type(state) == "LEGACY")


def _stream_states(state: Cursor) -> list[Cursor]:
    """Return the AirbyteStreamStates of a message."""
    if _message_type(state) == "STREAM":
        return [state["stream"]]
    return list(state["global"]["stream_states"]) if _message_type(state) == "GLOBAL" else []


def _stream_message(key: str, cursor: Cursor) -> Cursor:
    return {"type": "STREAM", "stream": {"stream_descriptor": _descriptor_of(key), "stream_state": cursor}}


def _key_of_entry(entry: Cursor) -> str:
    return _stream_key(entry["stream_descriptor"]["name"], entry["stream_descriptor"].get("namespace"))


def _stream_key(name: str, namespace: str | None = None) -> str:
    key = key_of(name, "/")
    return key if namespace is None else f"{key_of(namespace, '/')}/{key}"


def _descriptor_of(key: str) -> Cursor:
    namespace, slash, name = key.partition("/")
    descriptor = {"name": name_of(name), "namespace": name_of(namespace)} if slash else {"name": name_of(key)}
    _check_spelling(key, _stream_key(**descriptor))
    return descriptor


# Names, and what is checked


def _functions(format: Format) -> tuple[Callable[[Any], Any], Callable[[Cursors, Cursor | None], Any]]:
    try:
        return _FUNCTIONS[format]
    except KeyError:
        raise ValueError(f"there is no format {format!r}: it is one of {', '.join(FORMATS)}") from None


_FUNCTIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Cursors, Cursor | None], Any]]] = {
    "singer": (_load_singer, _dump_singer),
    "airbyte": (_load_airbyte, _dump_airbyte),
    "meltano": (_load_meltano, _dump_meltano),
    "json": (_load_json, _dump_json),
}


def _keyed(by_name: Cursors) -> Cursors:
    return {key_of(name): cursor for name, cursor in by_name.items()}


def _under_names(by_key: Cursors) -> Cursors:
    for key in by_key:
        _check_spelling(key, key_of(name_of(key)))
    return {name_of(key): cursor for key, cursor in by_key.items()}


def _check_spelling(key: str, spelling: str) -> None:
    if key != spelling:  # another key would come back
        raise ValueError(f"{key!r} is not how a stream's name is written as a key: {spelling!r} is")


def _check_key(key: str) -> None:
    try:
        check_name("key", key)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if key.startswith("__"):
        raise ValueError(f"the key {key!r} is reserved: no key begins with __")


def _check_json(document: Any, where: str) -> None:
    try:
        codec.canonical({"": document})
    except (TypeError, ValueError) as error:
        reason = str(error).replace("cursor['']", where)
        raise ValueError(f"{where} is not JSON: {reason}") from error


def _object_at(value: Any, where: str) -> Cursor:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, not {_named_type(value)}")  # bad data
    return cast("Cursor", value)


def _named_type(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "a list" if isinstance(value, list) else "text" if isinstance(value, str) else "a number"
