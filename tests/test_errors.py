"""The error tree: what each error says and carries, and that it can be sent to another process."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import shlex

import pytest

from checkpoint import errors
from checkpoint.entries import Entry
from checkpoint.errors import (
    CheckpointError,
    CommitUnknown,
    Conflict,
    CorruptState,
    CursorExpired,
    CursorRegressed,
    CursorStuck,
    LeaseLost,
    Locked,
    PartialCommit,
    StateMissing,
    StoreError,
    StoreUnavailable,
    Unauthorized,
    ValueTooLarge,
)

OLD = Entry("contacts", "1", version=1)
NEW = Entry("contacts", "2", updated_at="2024-05-01T10:00:00.000Z", sync_job_run_id="run-2", version=2)
HINT = (
    "after this run had read it, and was not overwritten: if the job runs twice, stop one run; "
    "cp.discard() adopts what is stored, on_conflict='overwrite' replaces it"
)

EVERY = [
    (
        StateMissing("job"),
        {"state_key": "job", "store": None},
        "nothing is stored under 'job': check state_key and store, or pass missing='new' to start over",
    ),
    (
        StateMissing("job", "SQLiteStore('/var/state.db')"),
        {"state_key": "job", "store": "SQLiteStore('/var/state.db')"},
        (
            "nothing is stored under 'job' in SQLiteStore('/var/state.db'): check state_key and store, "
            "or pass missing='new' to start over"
        ),
    ),
    (
        CorruptState("job", "contacts", "junk"),
        {"state_key": "job", "key": "contacts", "value": "junk", "where": None},
        (
            "the value of 'contacts' in 'job' is not a cursor, and was left unchanged: read it with "
            "cp.raw['contacts'], or set the key to replace it"
        ),
    ),
    (
        CorruptState("job", "__lease__", "junk"),
        {"state_key": "job", "key": "__lease__", "value": "junk", "where": None},
        (
            "the value of '__lease__' in 'job' is not a cursor, and was left unchanged: "
            "when no run holds the lease, release it with `checkpoint unlock job`"
        ),
    ),
    (
        CorruptState("job", "contacts", None, "/var/state.db"),
        {"state_key": "job", "key": "contacts", "value": None, "where": "/var/state.db"},
        (
            "the stored row of 'contacts' in 'job' is damaged, and was left unchanged: "
            "repair or delete it in /var/state.db, or restore a backup"
        ),
    ),
    (
        Conflict("job", "contacts", OLD, NEW),
        {"state_key": "job", "key": "contacts", "expected": OLD, "found": NEW, "member": None},
        f"'contacts' in 'job' was changed by another writer at 2024-05-01T10:00:00.000Z (run run-2) {HINT}",
    ),
    (
        Conflict("job", "contacts", OLD, Entry("contacts", "2")),
        {"state_key": "job", "key": "contacts", "expected": OLD, "found": Entry("contacts", "2"), "member": None},
        f"'contacts' in 'job' was changed by another writer {HINT}",
    ),
    (
        Conflict("job", "contacts", None, NEW),
        {"state_key": "job", "key": "contacts", "expected": None, "found": NEW, "member": None},
        f"'contacts' in 'job' was created by another writer at 2024-05-01T10:00:00.000Z (run run-2) {HINT}",
    ),
    (
        Conflict("job", "contacts", OLD, None),
        {"state_key": "job", "key": "contacts", "expected": OLD, "found": None, "member": None},
        f"'contacts' in 'job' was deleted by another writer {HINT}",
    ),
    (
        Locked("job", "host-1:4711", "2024-05-01T10:00:00Z"),
        {"state_key": "job", "owner": "host-1:4711", "since": "2024-05-01T10:00:00Z"},
        (
            "'job' has been held by host-1:4711 since 2024-05-01T10:00:00Z: wait for that run to end; if it is stuck, "
            "stop it, or release its lease with `checkpoint unlock job`"
        ),
    ),
    (
        LeaseLost("job"),
        {"state_key": "job"},
        (
            "this run lost its lease of 'job': another run took it, or somebody released it; nothing was written: "
            "stop, and start the job again"
        ),
    ),
    (
        CommitUnknown("job", ["contacts", "deals"]),
        {"state_key": "job", "keys": ("contacts", "deals")},
        (
            "it is unknown whether 'contacts', 'deals' in 'job' was written: commit again (safe in both cases), "
            "or let the next run find out"
        ),
    ),
    (
        PartialCommit({"contacts": NEW, "gone": None}, ["deals", "notes"], {"deals": StoreError("500 from the API")}),
        {
            "committed": {"contacts": NEW, "gone": None},
            "pending": ("deals", "notes"),
            "errors": {"deals": StoreError("500 from the API")},
        },
        (
            "'contacts', 'gone' committed, 'deals', 'notes' pending: commit again to send only what is pending: "
            "'deals': 500 from the API"
        ),
    ),
    (
        PartialCommit({}, ["deals"], {"deals": ValueTooLarge("deals", 2_000_000)}),
        {"committed": {}, "pending": ("deals",), "errors": {"deals": ValueTooLarge("deals", 2_000_000)}},
        (
            "nothing committed, 'deals' pending: commit again to send only what is pending: "
            "'deals': the value of 'deals' is too large for the store: 2,000,000 bytes; store less in one cursor"
        ),
    ),
    (StoreError("the API said no"), {}, "the API said no"),
    (Unauthorized("the API refused the token"), {}, "the API refused the token"),
    (
        ValueTooLarge("contacts", 1_234_567),
        {"key": "contacts", "size": 1_234_567},
        "the value of 'contacts' is too large for the store: 1,234,567 bytes; store less in one cursor",
    ),
    (StoreUnavailable("3 attempts failed"), {}, "3 attempts failed"),
    (
        CursorRegressed("contacts", 5, 3),
        {"key": "contacts", "last": 5, "new": 3, "row_order": "asc"},
        (
            "'contacts' is not sorted as row_order='asc' says: 3 came after 5. Rows may have been skipped: if its "
            "position lies after 3, rewind to 3 or earlier, to a value up to which the source was in order; if the "
            "source does not sort, then open it without row_order"
        ),
    ),
    (
        CursorRegressed("contacts", 3, "x" * 50, "desc"),
        {"key": "contacts", "last": 3, "new": "x" * 50, "row_order": "desc"},
        (
            f"'contacts' is not sorted as row_order='desc' says: '{'x' * 39}… came after 3. Its position did not move, "
            "so nothing is lost: read it again in order, or without row_order; if rows move between pages while they "
            "are read, pass a primary_key"
        ),
    ),
    (
        CursorStuck("contacts", "2024-05-01"),
        {"key": "contacts", "at": "2024-05-01"},
        (
            "'contacts' does not get past '2024-05-01': that page held nothing new and leads back to itself, "
            "usually because more rows share a value than fit on a page; ask for larger pages, or page by a value that "
            "tells such rows apart: a token, an offset, or (value, id)"
        ),
    ),
    (
        CursorExpired("contacts", "2024-01-01", "2024-04-01"),
        {"key": "contacts", "position": "2024-01-01", "oldest": "2024-04-01"},
        (
            "'contacts' stopped at '2024-01-01', and its source reaches back only to '2024-04-01': the rows in between "
            "are gone; for a full refresh, delete the key and open the stream again"
        ),
    ),
]

every = pytest.mark.parametrize(("error", "carried", "text"), EVERY, ids=lambda value: type(value).__name__)


def seen(error: CheckpointError) -> dict[str, object]:
    """Return what an error carries, with the errors among it as their texts: two errors are never equal."""
    return {name: str(value) if name == "errors" else value for name, value in vars(error).items()}


def drawn(kind: type) -> list[str]:
    """Draw a class and its subclasses, one on each line."""
    lines = [kind.__name__]
    own = [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    *others, last = own or [None]
    for child in others:
        first, *rest = drawn(child)
        lines += [f"├── {first}", *(f"│   {line}" for line in rest)]
    if last is not None:
        first, *rest = drawn(last)
        lines += [f"└── {first}", *(f"    {line}" for line in rest)]
    return lines


def test_the_docstring_draws_the_tree() -> None:
    tree = errors.__doc__.split("\n\n")[1]
    assert re.findall(r"^    ([ │├└─]*\w+)", tree, re.MULTILINE) == drawn(CheckpointError)
    assert CheckpointError.__bases__ == (Exception,)


def test_every_error_is_tested() -> None:
    tested = {type(error) for error, _, _ in EVERY}
    assert tested == {
        value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, CheckpointError)
    } - {CheckpointError}


@every
def test_it_says_what_happened_and_what_to_do(error: CheckpointError, carried: dict[str, object], text: str) -> None:
    assert str(error) == text


@every
def test_it_carries_the_evidence(error: CheckpointError, carried: dict[str, object], text: str) -> None:
    assert seen(error) == {name: str(value) if name == "errors" else value for name, value in carried.items()}


@every
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_it_survives_pickling_and_copying(error, carried, text, copied) -> None:
    again = copied(error)
    assert (type(again), str(again), seen(again)) == (type(error), str(error), seen(error))


def test_what_was_set_later_survives_too() -> None:
    error = StoreError("no")
    assert error.committed == {}
    error.committed = {"contacts": NEW}
    again = pickle.loads(pickle.dumps(error))
    assert again.committed == {"contacts": NEW}
    assert StoreError("other").committed == {}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            CorruptState("job", "contacts", "junk"),
            (
                "the value of 'contacts' in 'job' is not a cursor (it is not base64), and was left unchanged: "
                "read it with cp.raw['contacts'], or set the key to replace it"
            ),
        ),
        (
            CommitUnknown("job", ["contacts"]),
            (
                "it is unknown whether 'contacts' in 'job' was written (it is not base64): commit again (safe in "
                "both cases), or let the next run find out"
            ),
        ),
    ],
)
def test_the_cause_is_told(error: CheckpointError, text: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        raise error from ValueError("it is not base64")
    assert str(caught.value) == text


def test_of_many_keys_ten_are_named() -> None:
    ten = ", ".join(f"'key {number}'" for number in range(10))
    hint = "commit again (safe in both cases), or let the next run find out"
    for count, named in ((10, ten), (11, f"{ten}, 1 more"), (1_000, f"{ten}, 990 more")):
        error = CommitUnknown("job", (f"key {number}" for number in range(count)))
        assert str(error) == f"it is unknown whether {named} in 'job' was written: {hint}"
        assert len(error.keys) == count


def test_what_it_carries_is_its_own() -> None:
    committed, pending, failed = {"a": NEW}, ["b"], {"b": StoreError("no")}
    error = PartialCommit(committed, pending, failed)
    committed.clear()
    pending.clear()
    failed.clear()
    assert (error.committed, error.pending, list(error.errors)) == ({"a": NEW}, ("b",), ["b"])


NAMES = ["job", "nightly job; rm -rf x", "-job", "--yes", "it's", "a`b$c", "Größe"]


@pytest.mark.parametrize("name", NAMES)
def test_a_command_in_an_error_is_one_that_a_shell_takes(name):
    shown = str(Locked(name, "host-1:4711", "2024-05-01T10:00:00Z")).partition("with `")[2].removesuffix("`")
    end = ["--"] if name.startswith("-") else []
    assert shlex.split(shown) == ["checkpoint", "unlock", *end, name]
    line = errors.command_line("reshard", [name, "x"], ["--shards 2"])
    assert shlex.split(line) == (
        ["checkpoint", "reshard", "--shards", "2", "--", name, "x"]
        if end
        else ["checkpoint", "reshard", name, "x", "--shards", "2"]
    )


def test_a_command_in_an_error_has_no_control_characters():
    assert str(Locked("a\nb\x1b", "x", "y")).endswith(r"`checkpoint unlock $'a\012b\033'`")
