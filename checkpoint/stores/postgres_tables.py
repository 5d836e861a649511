"""The tables of the PostgreSQL store: how they are created, which release may use them, and the statements on them.

    checkpoint_schema      one row: the form of the tables, and which release reads it
    checkpoint_namespaces  a row a namespace; writers lock it, one after the other
    checkpoint_entries     a row a key
    checkpoint_history     a row a change of a key; bounded per key

Tables that release 0.1 made (format 1) are used as they are: its `checkpoint_commits` and `checkpoint_changes` are read
as older history, and `checkpoint_history` is made beside them. `install` turns format 1 into format 2.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from checkpoint.errors import StoreError
from checkpoint.stores.postgres_connections import psycopg

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

FORMAT = 2
"""Of the tables that this release makes."""

READABLE_FROM = 2
"""The lowest format that a release must know to use them."""

RELEASE = "0.2"
"""The first release that knows `FORMAT`; named where an older one refuses."""

ENTRIES, HISTORY, OLD_HISTORY = "checkpoint_entries", "checkpoint_history", "checkpoint_commits"

# Keys may be longer than an index takes (2,704 bytes): their SHA-256 is indexed. Values are the bytes of their UTF-8:
# PostgreSQL's text holds no NUL; `convert_from(value, 'UTF8')` shows them. A token names the commit that wrote a row.
_MAKE = {
    "checkpoint_schema": (
        """CREATE TABLE {schema}.checkpoint_schema (
            version integer NOT NULL, readable_from integer, release text
        )""",
        f"INSERT INTO {{schema}}.checkpoint_schema VALUES ({FORMAT}, {READABLE_FROM}, '{RELEASE}')",  # noqa: S608 - of constants
    ),
    "checkpoint_namespaces": (
        """CREATE TABLE {schema}.checkpoint_namespaces (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, digest bytea NOT NULL UNIQUE, state_key text NOT NULL,
            version bigint NOT NULL, token bytea NOT NULL
        )""",
    ),
    ENTRIES: (
        """CREATE TABLE {schema}.checkpoint_entries (
            namespace bigint NOT NULL, digest bytea NOT NULL, key text NOT NULL, value bytea NOT NULL,
            created_at text NOT NULL, updated_at text NOT NULL, sync_job_run_id text, version bigint NOT NULL,
            PRIMARY KEY (namespace, digest)
        )""",
        # Not compressed: that takes seconds for each 10 MB.
        "ALTER TABLE {schema}.checkpoint_entries ALTER value SET STORAGE EXTERNAL",
    ),
    HISTORY: (
        """CREATE TABLE {schema}.checkpoint_history (
            namespace bigint NOT NULL, digest bytea NOT NULL, version bigint NOT NULL, key text NOT NULL,
            before bytea, after bytea, at text NOT NULL, run_id text, host text NOT NULL, process bigint NOT NULL,
            reason text, written_by text, token bytea NOT NULL, PRIMARY KEY (namespace, digest, version)
        )""",
        """ALTER TABLE {schema}.checkpoint_history
            ALTER before SET STORAGE EXTERNAL, ALTER after SET STORAGE EXTERNAL""",
    ),
}
"""What makes each table, in this order."""

_NEEDED = ("checkpoint_schema", "checkpoint_namespaces", ENTRIES)
_OURS = {*_MAKE, OLD_HISTORY, "checkpoint_changes"}
# The ids of an empty table of namespaces would lead to the entries of other ones.
_BEGIN_ANEW = "; to start over, drop the other checkpoint tables too, and run `checkpoint init`"

_FROM_FORMAT_1 = (
    """INSERT INTO {schema}.checkpoint_history
        SELECT namespace, digest, version, key, before, after, at, run_id, host, process, NULL, NULL, token
        FROM {schema}.checkpoint_changes JOIN {schema}.checkpoint_commits USING (namespace, version)
        ON CONFLICT DO NOTHING""",
    "DROP TABLE {schema}.checkpoint_changes",
    "DROP TABLE {schema}.checkpoint_commits",
    "ALTER TABLE {schema}.checkpoint_schema ADD readable_from integer, ADD release text",
    f"""UPDATE {{schema}}.checkpoint_schema
        SET version = {FORMAT}, readable_from = {READABLE_FROM}, release = '{RELEASE}'""",  # noqa: S608 - of constants
)
"""What turns the tables of release 0.1, with `checkpoint_history` beside them, into those of this one."""

_GRANTS = """GRANT USAGE ON SCHEMA {schema} TO {role};
GRANT SELECT ON {schema}.checkpoint_schema TO {role};
GRANT SELECT, INSERT, UPDATE ON {schema}.checkpoint_namespaces TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.checkpoint_entries, {schema}.checkpoint_history TO {role};"""
"""What a role needs that runs jobs."""

_TABLES = """SELECT tablename FROM pg_catalog.pg_tables
    WHERE schemaname = %(schema)s AND tablename LIKE 'checkpoint\\_%%'"""
_HAS_SCHEMA = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s"
_SCHEMA = "SELECT to_jsonb(found) FROM {schema}.checkpoint_schema found ORDER BY version DESC LIMIT 1"
# Held until the transaction ends, as PgBouncer needs it: of several that create or migrate, one does.
_ALONE = "SELECT pg_advisory_xact_lock(7161374129025417316)"
_ENCODING = "SELECT pg_catalog.current_setting('server_encoding')"
_HIDES = "SELECT pg_catalog.row_security_active(pg_catalog.to_regclass(%(table)s))"

LOAD = """SELECT entry.key, entry.value, entry.created_at, entry.updated_at, entry.sync_job_run_id, entry.version
    FROM {schema}.checkpoint_entries entry JOIN {schema}.checkpoint_namespaces namespace ON namespace.id = namespace
    WHERE namespace.digest = %(namespace)s"""
READ = LOAD + " AND entry.digest = ANY(%(digests)b::bytea[])"
VERSION = "SELECT version FROM {schema}.checkpoint_namespaces WHERE digest = %(namespace)s"
# A row of its own is what the writers of a namespace wait for: one after the other, they read what the last one left.
LOCK = """SELECT id, version, token FROM {schema}.checkpoint_namespaces
    WHERE digest = %(digest)s FOR UPDATE"""
ADD = """INSERT INTO {schema}.checkpoint_namespaces (digest, state_key, version, token)
    VALUES (%(digest)s, %(state_key)s, 0, '') ON CONFLICT DO NOTHING"""
LANDED = """SELECT 1 FROM {schema}.checkpoint_history
    WHERE namespace = %(namespace)s AND digest = ANY(%(digests)b::bytea[]) AND token = %(token)s"""
WRITE = """WITH given AS (
        SELECT * FROM unnest(%(digests)b::bytea[], %(keys)b::text[], %(values)b::bytea[]) AS given (digest, key, value)
    ), deleted AS (
        DELETE FROM {schema}.checkpoint_entries entry USING given
        WHERE entry.namespace = %(namespace)s AND entry.digest = given.digest AND given.value IS NULL
    )
    INSERT INTO {schema}.checkpoint_entries AS entry
    SELECT %(namespace)s, digest, key, value, %(now)s, %(now)s, %(run_id)s, %(version)s
    FROM given WHERE value IS NOT NULL
    ON CONFLICT (namespace, digest) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at,
        sync_job_run_id = excluded.sync_job_run_id, version = excluded.version"""
COUNT = """UPDATE {schema}.checkpoint_namespaces SET version = %(version)s, token = %(token)s
    WHERE id = %(namespace)s"""
# Run before WRITE: what a key held is taken from its entry.
RECORD = """INSERT INTO {schema}.checkpoint_history
    SELECT %(namespace)s, given.digest, %(version)s, given.key, entry.value, given.value, %(now)s, %(run_id)s, %(host)s,
        %(process)s, given.reason, %(by)s, %(token)s
    FROM unnest(%(digests)b::bytea[], %(keys)b::text[], %(values)b::bytea[], %(reasons)b::text[])
        AS given (digest, key, value, reason)
    LEFT JOIN {schema}.checkpoint_entries entry
        ON entry.namespace = %(namespace)s AND entry.digest = given.digest"""
# Of keys that have more than `keep` changes. (An array, for the planner knows nothing yet of tables this new, and would
# nest loops.)
TIMES = """SELECT digest, version, at FROM {schema}.checkpoint_history
    WHERE namespace = %(namespace)s AND digest = ANY(ARRAY(
        SELECT digest FROM {schema}.checkpoint_history
        WHERE namespace = %(namespace)s AND digest = ANY(%(digests)b::bytea[])
        GROUP BY digest HAVING count(*) > %(keep)s))
    ORDER BY digest, version DESC"""
FORGET = """DELETE FROM {schema}.checkpoint_history change
    USING unnest(%(digests)b::bytea[], %(versions)b::bigint[]) AS gone (digest, version)
    WHERE change.namespace = %(namespace)s AND change.digest = gone.digest AND change.version = gone.version"""
_PAST = """SELECT key, before, after, version, at, run_id, host, process, reason, written_by
    FROM {schema}.checkpoint_history WHERE namespace = ({id}) AND {wanted}"""
_PAST_OF_FORMAT_1 = """SELECT key, before, after, version, at, run_id, host, process, NULL::text, NULL::text
    FROM {schema}.checkpoint_changes change JOIN {schema}.checkpoint_commits commit USING (namespace, version)
    WHERE namespace = ({id}) AND {wanted}"""
# Of all keys those of the job and members of groups; of one key itself and, of a group, its members.
_WANTED = """CASE WHEN %(digest)s::bytea IS NULL
        THEN NOT starts_with(key, %(reserved)s)
            OR starts_with(key, %(groups)s) AND strpos(substr(key, length(%(groups)s) + 1), '/') > 0
        ELSE digest = %(digest)s OR starts_with(key, %(members)s) END"""
_ID = "SELECT id FROM {schema}.checkpoint_namespaces WHERE digest = %(namespace)s"
NAMESPACES = """SELECT state_key FROM {schema}.checkpoint_namespaces namespace
    WHERE EXISTS (SELECT FROM {schema}.checkpoint_entries WHERE namespace = namespace.id)"""


class Statements:
    """Executes our statements on a cursor; nothing of it stays on the server when the transaction has ended."""

    def __init__(self, cursor: psycopg.Cursor[tuple[Any, ...]], schema: str) -> None:
        self.schema = schema
        self.tables: frozenset[str] = frozenset()
        """Those of ours that exist."""
        self._cursor = cursor

    def savepoint(self) -> AbstractContextManager[Any]:
        """Return a part of the transaction that is rolled back alone where it fails."""
        return self._cursor.connection.transaction()

    def __call__(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """Execute a statement, with `{schema}` for the quoted schema in it, and return its rows."""
        schema = identifier(self.schema)
        query = sql.replace("{schema}", schema.replace("%", "%%") if values else schema).encode()
        self._cursor.execute(query, values or None, prepare=False, binary=True)
        try:
            return self._cursor.fetchall() if self._cursor.description else []
        except UnicodeDecodeError as error:  # of a database with the encoding SQL_ASCII
            raise StoreError(
                f"a row of checkpoint_… in the PostgreSQL schema {self.schema!r} holds text that is not UTF-8, and was "
                "left unchanged: repair it there, or restore a backup"
            ) from error


def place(schema: str, table: str) -> str:
    """Return the name of a table for an error."""
    return f"the PostgreSQL table {identifier(schema)}.{table}"


def identifier(name: str) -> str:
    """Return an identifier as SQL spells it."""
    return '"{}"'.format(name.replace('"', '""'))


def found(statements: Statements, *, making: bool = False) -> frozenset[str]:
    """Return which of our tables exist; while `making` them, some may be missing.

    Raises:
        StoreError: this release cannot read them, or may not see their rows; some were dropped.

    """
    tables = frozenset(name for (name,) in statements(_TABLES, schema=statements.schema)) & _OURS
    if not tables:
        return tables
    for table in _NEEDED:
        if table not in tables and not (making and table == ENTRIES):
            raise StoreError(
                f"{place(statements.schema, table)} is missing with everything that it held: restore it from a backup"
                + (", or run `checkpoint init`, which creates an empty one" if table == ENTRIES else _BEGIN_ANEW)
            )
    rows = statements(_SCHEMA)
    if not rows:
        check_visible(statements, "checkpoint_schema")
        raise StoreError(
            f"the table checkpoint_schema in the PostgreSQL schema {statements.schema!r} has lost its row: "
            "restore it from a backup"
        )
    schema: dict[str, Any] = rows[0][0]
    readable_from = schema.get("readable_from") or schema.get("version")
    if not isinstance(readable_from, int):
        raise StoreError(
            f"{place(statements.schema, 'checkpoint_schema')} does not say which format the tables have: "
            "restore it from a backup"
        )
    if readable_from > FORMAT:
        raise StoreError(
            f"the checkpoint tables in the PostgreSQL schema {statements.schema!r} have format {schema['version']}, "
            f"which needs a release that knows format {readable_from}, and this one knows {FORMAT}: upgrade "
            f"checkpoint-store{' to ' + schema['release'] if schema.get('release') else ''}; the tables were left "
            "unchanged"
        )
    return tables


def check_visible(statements: Statements, table: str) -> None:
    """Refuse to treat rows as absent that row-level security may hide.

    Raises:
        StoreError: row-level security is active for this role.

    """
    if is_guarded(statements, table):
        raise StoreError(
            f"row-level security hides rows of {table} in the PostgreSQL schema {statements.schema!r} from this role: "
            "rows that it cannot see would be taken for absent; add a policy that shows the role its rows"
        )


def is_guarded(statements: Statements, table: str) -> bool:
    """Tell whether row-level security is active on one of our tables for this role."""
    return bool(statements(_HIDES, table=f"{identifier(statements.schema)}.{table}")[0][0])


def check_absent(statements: Statements, state_key: str, digest: bytes) -> None:
    """Check that a namespace is absent, and not hidden by row-level security: insert its row, and roll back.

    If the row can be inserted and is visible then, it was absent.

    Raises:
        StoreError: it is hidden, or the role may not insert it.

    """
    visible = False
    with suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction), statements.savepoint():
        statements(ADD, digest=digest, state_key=state_key)
        visible = bool(statements(LOCK, digest=digest))
        raise psycopg.Rollback
    if not visible:
        check_visible(statements, "checkpoint_namespaces")


def make_missing(statements: Statements) -> None:
    """Create the missing tables, unless another process is creating them: then wait for its transaction.

    Raises:
        StoreError: the database cannot hold any text.

    """
    statements(_ALONE)
    statements.tables = found(statements, making=True)
    if not statements.tables:
        encoding = statements(_ENCODING)[0][0]
        if encoding != "UTF8":
            raise StoreError(
                f"the database has the encoding {encoding}, which cannot hold every key: use a database with UTF8"
            )
        if not statements(_HAS_SCHEMA, schema=statements.schema):
            statements("CREATE SCHEMA {schema}")
    for table, steps in _MAKE.items():
        if table not in statements.tables:
            for step in steps:
                statements(step)
    statements.tables |= _MAKE.keys()


def install(statements: Statements) -> None:
    """Create the tables, or migrate those of an earlier release."""
    make_missing(statements)
    if OLD_HISTORY in statements.tables:
        for step in _FROM_FORMAT_1:
            statements(step)
        statements.tables = found(statements)


def script(schema: str, role: str) -> str:
    """Return the SQL that creates the tables and grants their use to a role, for a database administrator."""
    steps = ["CREATE SCHEMA IF NOT EXISTS {schema}", *(step for steps in _MAKE.values() for step in steps)]
    text = ";\n".join(" ".join(step.split()) for step in steps) + ";\n" + _GRANTS + "\n"
    return f"BEGIN;\n{text}COMMIT;\n".replace("{schema}", identifier(schema)).replace("{role}", role)


def past(statements: Statements) -> str:
    """Return the statement that reads the history of a namespace, or of one key of it; empty: there is none."""
    parts = [_PAST] if HISTORY in statements.tables else []
    parts += [_PAST_OF_FORMAT_1] if OLD_HISTORY in statements.tables else []
    if not parts:
        return ""
    union = " UNION ALL ".join(parts).replace("{id}", _ID).replace("{wanted}", _WANTED)
    return f'SELECT * FROM ({union}) past ORDER BY version DESC, key COLLATE "C" LIMIT %(limit)s::bigint'  # noqa: S608 - of constants
