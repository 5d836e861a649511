"""Connectors for six APIs that the guide does not speak of, written with nothing but the guide; killed and resumed.

GitLab pages merge requests by number and takes `updated_after`; Twilio gives messages newest first, with RFC 2822 dates
and a link to the next page, and their status changes later; ServiceNow takes a query over naive UTC times, by offset.
Square sorts orders and refuses a cursor beside another query; Intercom searches contacts after an epoch second, sorted;
Linear gives issues newest first, and its cursor is the id of an issue, which moves when that is changed.
"""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta, timezone
from urllib.parse import urlencode

import pytest
from sources import Runner, Source, blocks, instant, seconds
from test_guide import KILLS, ROWS, SEED, SETUP

GITLAB = """
from checkpoint import Checkpointer

PAGE = 100

with Checkpointer("gitlab", STORE) as cp:
    requests = cp.incremental(
        "merge_requests", "updated_at", initial_value="1970-01-01T00:00:00Z", row_order="asc", primary_key="id"
    )

    def page(since):
        rows = get(
            "/api/v4/projects/7/merge_requests",
            updated_after=since or requests.start_value, order_by="updated_at", sort="asc", per_page=PAGE,
        )
        return rows, rows[-1]["updated_at"] if len(rows) == PAGE else None

    for rows in requests.fetch(page):
        sink.write(rows)
        cp.commit()
"""

TWILIO = """
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime, parsedate_to_datetime

from checkpoint import Checkpointer, CursorFormat

rfc_2822 = CursorFormat(parsedate_to_datetime, lambda when: format_datetime(when.astimezone(timezone.utc), usegmt=True))

with Checkpointer("twilio", STORE) as cp:
    messages = cp.incremental(
        "messages", "date_sent", cursor_format=rfc_2822, initial_value=datetime(1970, 1, 1, tzinfo=timezone.utc),
        row_order="desc", primary_key="sid", lookback=timedelta(days=1), version_fields=("status",), max_seen=10_000,
    )
    day = messages.start_value
    day = parsedate_to_datetime(day) if isinstance(day, str) else day

    def page(uri):
        if uri is None:
            asked = {"DateSent>": day.date().isoformat(), "PageSize": 50}
            answer = get("/2010-04-01/Accounts/AC7/Messages.json", **asked)
        else:
            answer = get(uri)
        return answer["messages"], answer["next_page_uri"]

    for rows in messages.fetch(page):
        sink.write([{"id": row["sid"], "version": row["status"]} for row in rows])
        cp.commit()
"""

SERVICENOW = """
from datetime import timedelta

from checkpoint import Checkpointer

PAGE = 100

with Checkpointer("servicenow", STORE) as cp:
    incidents = cp.incremental(
        "incident", "sys_updated_on", initial_value="1970-01-01 00:00:00", timezone="UTC",
        row_order="asc", primary_key="sys_id", lookback=timedelta(seconds=1),
    )

    def page(place):
        since, offset = place or (incidents.start_value, 0)
        rows = get(
            "/api/now/table/incident",
            sysparm_query=f"sys_updated_on>={since}^ORDERBYsys_updated_on^ORDERBYsys_id",
            sysparm_limit=PAGE, sysparm_offset=offset,
        )["result"]
        if len(rows) < PAGE:
            return rows, None
        last = rows[-1]["sys_updated_on"]
        return rows, (last, 0) if last != since else (since, offset + PAGE // 2)

    for rows in incidents.fetch(page):
        sink.write([{"id": row["sys_id"], "version": row["version"]} for row in rows])
        cp.commit()
"""

POST = """
def post(path, body):
    while (answer := client.post(path, json=body)).status_code == 429:
        time.sleep(float(answer.headers.get("Retry-After", "1")))
    return answer.raise_for_status().json()
"""

SQUARE = """
from checkpoint import Checkpointer

with Checkpointer("square", STORE) as cp:
    orders = cp.incremental(
        "orders", "updated_at", initial_value="1970-01-01T00:00:00Z", row_order="asc", primary_key="id"
    )

    def page(cursor):
        body = {
            "location_ids": ["L1"], "limit": 100,
            "query": {
                "filter": {"date_time_filter": {"updated_at": {"start_at": orders.start_value}}},
                "sort": {"sort_field": "UPDATED_AT", "sort_order": "ASC"},
            },
        }
        answer = post("/v2/orders/search", body | ({"cursor": cursor} if cursor else {}))
        return answer.get("orders", []), answer.get("cursor")

    for rows in orders.fetch(page):
        sink.write(rows)
        cp.commit()
"""

INTERCOM = """
from checkpoint import Checkpointer

with Checkpointer("intercom", STORE) as cp:
    contacts = cp.incremental(
        "contacts", "updated_at", cursor_format="epoch_s", initial_value=1, row_order="asc", primary_key="id"
    )

    def page(after):
        body = {
            "query": {"field": "updated_at", "operator": ">", "value": contacts.start_value - 1},
            "sort": {"field": "updated_at", "order": "ascending"},
            "pagination": {"per_page": 150} | ({"starting_after": after} if after else {}),
        }
        answer = post("/contacts/search", body)
        following = answer["pages"].get("next")
        return answer["data"], following and following["starting_after"]

    for rows in contacts.fetch(page):
        sink.write(rows)
        cp.commit()
"""

LINEAR = """
from checkpoint import Checkpointer

QUERY = (
    "query($after: String, $since: DateTimeOrDuration) { issues(first: 50, after: $after, orderBy: updatedAt, "
    "filter: {updatedAt: {gte: $since}}) { nodes { id version updatedAt } pageInfo { hasNextPage endCursor } } }"
)

with Checkpointer("linear", STORE) as cp:
    issues = cp.incremental(
        "issues", "updatedAt", initial_value="1970-01-01T00:00:00.000Z", row_order="desc", primary_key="id"
    )

    def page(after):
        answer = post("/graphql", {"query": QUERY, "variables": {"after": after, "since": issues.start_value}})
        found = answer["data"]["issues"]
        return found["nodes"], found["pageInfo"]["endCursor"] if found["pageInfo"]["hasNextPage"] else None

    for rows in issues.fetch(page):
        sink.write(rows)
        cp.commit()
"""

CONNECTORS = {
    "gitlab": GITLAB,
    "twilio": TWILIO,
    "servicenow": SERVICENOW,
    "square": POST + SQUARE,
    "intercom": POST + INTERCOM,
    "linear": POST + LINEAR,
}


class Six(Source):
    """The six APIs, as far as the connectors ask."""

    def __init__(self, seed, count):
        super().__init__(seed, count)
        self.sent = {}
        for number in range(count):
            self.send(number, timedelta(minutes=5 * (count - number)))

    def send(self, number, ago=timedelta()):
        sent = datetime.now(timezone.utc).replace(microsecond=0) - ago
        self.sent[number] = [sent, "queued" if ago < timedelta(hours=12) else "delivered"]

    def append(self):
        super().append()
        for _ in range(self.rng.randrange(3)):
            self.send(len(self.sent))
        for message in self.sent.values():
            if message[1] != "delivered" and self.rng.random() < 0.05:
                message[1] = "sent" if message[1] == "queued" else "delivered"

    def route(self, path, query):
        if path.startswith("/api/v4"):
            rows = self.table.sorted(instant(query["updated_after"]))
            return 200, [self.row(row) for row in rows[: int(query["per_page"])]]
        if path.startswith("/2010-04-01"):
            return self.messages(path, **query)
        if path == "/v2/orders/search":
            return self.square_orders(**query)
        if path == "/contacts/search":
            return self.intercom_contacts(**query)
        if path == "/graphql":
            return self.linear_issues(**query["variables"])
        return self.incidents(**query)

    def messages(self, path, **query):
        day, size = query["DateSent>"], int(query["PageSize"])
        found = sorted(((sent, number) for number, (sent, _) in self.sent.items()), reverse=True)
        found = [(sent, number) for sent, number in found if sent.date().isoformat() >= day]
        if token := query.get("PageToken"):
            sent, _, number = token.partition(".")
            found = [row for row in found if row < (datetime.fromtimestamp(int(sent), timezone.utc), int(number))]
        part = found[:size]
        rows = [
            {"sid": number, "date_sent": sent.strftime("%a, %d %b %Y %H:%M:%S +0000"), "status": self.sent[number][1]}
            for sent, number in part
        ]
        following = None
        if size < len(found):
            token = f"{int(part[-1][0].timestamp())}.{part[-1][1]}"
            following = f"{path}?{urlencode({**query, 'PageToken': token})}"
        return 200, {"messages": rows, "next_page_uri": following}

    def square_orders(self, location_ids, limit, query, cursor=None):
        """A cursor is given for one query, and for no other."""
        since = query["filter"]["date_time_filter"]["updated_at"]["start_at"]
        rows, asked = self.table.sorted(instant(since)), json.dumps([location_ids, query])
        if cursor:
            *after, made_for = json.loads(cursor)
            if made_for != asked:
                return 400, {"errors": [{"code": "INVALID_CURSOR", "detail": "made for another query"}]}
            rows = [row for row in rows if list(row[:2]) > after]
        found = [self.row(row) for row in rows[:limit]]
        if len(rows) <= limit:
            return 200, {"orders": found} if found else {}
        return 200, {"orders": found, "cursor": json.dumps([*rows[limit - 1][:2], asked])}

    def intercom_contacts(self, query, sort, pagination):
        """Whole seconds, after the one that is asked for; the place of the next page is where the last row was."""
        assert (query["operator"], sort["order"]) == (">", "ascending")
        rows, size = self.table.sorted((query["value"] + 1) * 1_000_000), pagination["per_page"]
        if after := pagination.get("starting_after"):
            rows = [row for row in rows if list(row[:2]) > json.loads(after)]
        data = [{**self.row(row), "updated_at": row[0] // 1_000_000} for row in rows[:size]]
        following = {"next": {"starting_after": json.dumps(rows[size - 1][:2])}} if len(rows) > size else {}
        return 200, {"data": data, "pages": following}

    def linear_issues(self, since, after=None):
        """Newest first; a cursor is an issue, which may have moved to the top since."""
        rows = self.table.sorted(instant(since))[::-1]
        if after is not None:
            rows = rows[[number for _, number, _ in rows].index(int(after)) + 1 :]
        nodes = [
            {"id": number, "version": version, "updatedAt": seconds(at)[:-1] + ".000Z"}
            for at, number, version in rows[:50]
        ]
        info = {"hasNextPage": len(rows) > 50, "endCursor": str(nodes[-1]["id"]) if nodes else None}
        return 200, {"data": {"issues": {"nodes": nodes, "pageInfo": info}}}

    def incidents(self, sysparm_query, sysparm_limit, sysparm_offset):
        since = instant(sysparm_query.partition(">=")[2].partition("^")[0] + "+00:00")
        begin = int(sysparm_offset)
        rows = [
            {
                "sys_id": number,
                "version": version,
                "sys_updated_on": seconds(at)[:-1].replace("T", " "),
            }
            for at, number, version in self.table.sorted(since)[begin : begin + int(sysparm_limit)]
        ]
        return 200, {"result": rows}


@pytest.mark.parametrize("name", CONNECTORS)
def test_a_connector_written_from_the_guide_misses_nothing(name, tmp_path):
    rng = random.Random(f"{name} {SEED}")
    with Six(SEED, ROWS) as source, Runner(tmp_path, source.url, SETUP + CONNECTORS[name]) as runner:
        source.heard = runner.event
        killed = 0
        for _ in range(KILLS * 2):
            died = not runner.run(kill_at=rng.randrange(1, 20), delay=rng.random() * 0.01)
            killed += died
            if not died:
                for _ in range(20):
                    source.table.change()
                    source.append()
        source.changing = False
        for later in (60, 600):
            assert runner.run(later=later)
        found = dict(runner.written())
        truth = (
            {number: status for number, (_, status) in source.sent.items()}
            if name == "twilio"
            else source.table.truth()
        )
        assert {key: value for key, value in truth.items() if found.get(key) != value} == {}
        assert runner.warnings() == []
        print(f"\n{name}: {killed} kills, {len(runner.written())} rows written, {len(truth)} at the source")


def test_the_rfc_2822_format_is_the_guides():
    line = next(line for line in blocks("values.md")[0].splitlines() if line.startswith("rfc_2822"))
    assert line in TWILIO
