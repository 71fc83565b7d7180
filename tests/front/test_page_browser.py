"""The page in a real browser: it shows the published events, and reports the missed ones.

Needs Chromium: `make browser` installs it on Debian. Without Chromium, these tests are skipped; in CI they fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

from tests.auth.test_access import JWT, token
from tests.browser import Browser
from tests.commands.test_commands import running_demo
from tests.running import Relay, eventually

EVENTS = "document.querySelector('#received').textContent"


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[Relay]:
    """Run a relay; the browser may keep connections to it."""
    server = Relay(*arguments)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


def publish(server: Relay, *events: dict[str, Any], topic: str = "news") -> None:
    server.publish("\n".join(map(json.dumps, events)), topic, "application/x-ndjson")


def watch(browser: Browser, server: Relay, query: str = "topic=news") -> None:
    """Open the page, and wait until its stream is open."""
    browser.open(f"{server.url}/?{query}")
    browser.wait("document.querySelector('#state').textContent === 'connected'")
    eventually(lambda: server.stats()["streams"] == 1, "the stream is open")


def received(browser: Browser, count: int) -> None:
    """Wait until the page has received this number of events."""
    browser.wait(f"{EVENTS} === '{count:,}'")


def figure(browser: Browser, name: str) -> str:
    return browser.text(f"#{name}")


def test_events_of_every_type_are_shown(browser: Browser) -> None:
    types = ("price", "made-up", "error", "open", "message", "relay-like", "Ünïcode 🚀")
    with serving() as server:
        watch(browser, server)
        publish(server, {"data": "plain"}, *({"event": kind, "data": f"of {kind}"} for kind in types))
        received(browser, 8)
        assert browser.texts("#rows td:nth-child(3)") == [*reversed(types), "message"]
        assert browser.texts("#rows td.data") == [*(f"of {kind}" for kind in reversed(types)), "plain"]
        assert figure(browser, "gaps") == figure(browser, "reconnections") == "0"


def test_each_event_of_a_pattern_has_its_topic(browser: Browser) -> None:
    with serving() as server:
        watch(browser, server, "topic=prices.*")
        long = '{"n": 12345678901234567890, "n": 1.0}'
        publish(server, {"data": "1"}, {"data": long}, topic="prices.eu")
        publish(server, {"data": "2"}, topic="prices.us")
        received(browser, 3)
        assert browser.texts("#rows td.topic") == ["prices.us", "prices.eu", "prices.eu"]
        assert browser.texts("#rows td.data") == ["2", long, "1"]


def test_text_of_events_never_becomes_markup(browser: Browser) -> None:
    markup = "<img src=x onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"
    with serving() as server:
        watch(browser, server)
        publish(server, {"event": markup, "id": markup, "data": markup}, {"data": "line 1\nline 2\n\n<b>bold</b>"})
        received(browser, 2)
        assert browser.texts("#rows td.data") == ["line 1\nline 2\n\n<b>bold</b>", markup]
        assert browser.texts("#rows tr:last-child td.id") == [markup]
        assert browser.value("document.querySelectorAll('#rows img, #rows b, #rows script').length") == 0
        assert browser.value("document.title") == "relay"


def test_a_page_resumes_when_the_demo_server_is_killed(browser: Browser) -> None:
    with running_demo("--rate", "50") as (_, address, lines):
        browser.open(f"{address}/?topic=**")
        browser.wait(f"Number({EVENTS}) >= 20")
        found = re.search(r"kill -9 (\d+)", lines[2])
        assert found
        os.kill(int(found[1]), signal.SIGKILL)
        browser.wait("document.querySelector('#reconnections').textContent === '1'")
        before = int(figure(browser, "received").replace(",", ""))
        browser.wait(f"Number({EVENTS}) >= {before + 20}")
        assert figure(browser, "gaps") == "0"
        ids = browser.texts("#rows td.id")
        numbers = [int(id.rpartition("-")[2]) for id in ids]
        assert numbers == list(range(numbers[0], numbers[0] - len(numbers), -1))


def test_a_server_that_restarts_without_its_history_leaves_a_visible_gap(browser: Browser) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with serving("--listen", address) as server:
        browser.open(f"http://{address}/?topic=news")
        browser.wait("document.querySelector('#state').textContent === 'connected'")
        eventually(lambda: server.stats()["streams"] == 1, "the stream is open")
        publish(server, {"data": "before"})
        received(browser, 1)
    # Failed attempts do not count as reconnections.
    browser.wait("/disconnected; reconnecting in/.test(document.querySelector('#state').textContent)")
    browser.value("(async () => { for (let n = 0; n < 2; n += 1) await stream.connect(); })()")
    assert figure(browser, "reconnections") == "0"
    with serving("--listen", address) as server:
        browser.wait("document.querySelector('#reconnections').textContent === '1'")
        assert figure(browser, "gaps") == "1"
        publish(server, *({"data": str(number)} for number in range(600)))
        received(browser, 601)
        browser.wait("document.querySelectorAll('#rows tr').length === 500")
        browser.click("#clear")
        [gap] = browser.texts("#gap-list li")
        assert "Events may have been missed" in gap
        assert browser.text("#missed").startswith("Gaps")


def test_a_gap_shows_the_number_of_missed_events_if_it_is_known(browser: Browser) -> None:
    with serving() as server:
        watch(browser, server)
        for gap in ({"reason": "slow", "missed": 312, "from": "a-10", "to": "a-321"}, {"reason": "slow", "missed": 1}):
            browser.value(f"stream.take('', 'relay.gap', {json.dumps(json.dumps(gap))}, '')")
        one, many = browser.texts("#gap-list li")
        assert "312 events were missed: this page was too slow (a-10 to a-321)" in many
        assert "1 event was missed" in one


def test_history_is_shown_on_request(browser: Browser) -> None:
    with serving() as server:
        publish(server, *({"data": str(number)} for number in range(3)))
        watch(browser, server)
        publish(server, {"data": "3"})
        received(browser, 1)
        browser.click("#history")
        browser.wait("document.querySelectorAll('#rows tr').length === 4")
        assert browser.texts("#rows td.data") == ["3", "2", "1", "0"]
        assert figure(browser, "gaps") == "0"


def test_a_topic_is_added_without_a_gap_and_removed_with_a_note(browser: Browser) -> None:
    with serving() as server:
        watch(browser, server)
        publish(server, {"data": "first"})
        received(browser, 1)
        browser.type("#topic", "sport")
        browser.wait("document.querySelectorAll('#topics button').length === 2")
        publish(server, {"data": "second"}, topic="sport")
        received(browser, 2)
        assert browser.value("location.search") == "?topic=news&topic=sport"
        assert figure(browser, "gaps") == figure(browser, "reconnections") == "0"
        browser.click("#topics li:first-child button")
        browser.wait("document.querySelectorAll('#gap-list li').length === 1")
        assert "may have been missed" in browser.texts("#gap-list li")[0]


def test_ten_thousand_events_are_counted_and_the_newest_500_shown(browser: Browser) -> None:
    with serving() as server:
        publish(server, *({"data": "x" * 200 + str(number)} for number in range(10_000)))
        watch(browser, server)
        browser.click("#history")
        received(browser, 10_000)
        browser.wait("document.querySelector('#rows td.data').textContent.endsWith('x9999')")
        assert browser.value("document.querySelectorAll('#rows tr').length") == 500
        assert browser.value("document.querySelectorAll('*').length") < 3500


def test_the_page_asks_for_a_token_and_hides_it(browser: Browser) -> None:
    with serving(*JWT) as server:
        browser.open(f"{server.url}/?topic=news")
        browser.wait("document.querySelector('#state').textContent === 'a token is needed'")
        assert "subscribing requires a token" in browser.text("#ask")
        browser.type("#token", "not-a-token")
        browser.wait("document.querySelector('#ask').hidden === false && token === 'not-a-token'")
        secret = token(relay={"subscribe": ["news"]})
        browser.type("#token", secret)
        browser.wait("document.querySelector('#state').textContent === 'connected'")
        eventually(lambda: server.stats()["streams"] == 1, "the stream is open")
        publish(server, {"data": "for ann"})
        received(browser, 1)
        assert browser.value("document.querySelector('#ask').hidden") is True
        for place in ("document.cookie", "location.href", "document.documentElement.outerHTML", "#token"):
            seen = f"document.querySelector('{place}').value" if place.startswith("#") else place
            assert secret not in browser.value(seen)
        assert browser.value("localStorage.length + sessionStorage.length") == 0
        browser.type("#topic", "other")
        browser.wait("document.querySelector('#state').textContent === 'not allowed'")
        assert "other" in browser.text("#ask")


def test_an_ended_topic_and_a_wrong_one_are_reported_and_not_requested_again(browser: Browser) -> None:
    with serving() as server:
        publish(server, {"event": "relay.end", "data": "3:1"}, topic="match.7")
        browser.open(f"{server.url}/?topic=match.7")
        browser.click("#history")
        received(browser, 1)
        browser.wait("/^ended/.test(document.querySelector('#state').textContent)")
        browser.open(f"{server.url}/?topic=a..b")
        browser.wait("/^refused .400.: /.test(document.querySelector('#state').textContent)")


PIECES = (
    '\n{"id":"0","retry":7}\n{"id":"1","event":"a","topic":"t","data":"x\\n ÿ🚀"}\n\n'
    '{"id":",","topic":"t,","data":{"n": 12345678901234567890,"data":"}"}}\n'
    '{"event":"relay.gap","data":[]}\n{"data":""}\n{"retry":8}\n{"id":"10","topic":"t","data":"torn"'
)


def test_the_parser_reads_the_stream_at_every_split(browser: Browser) -> None:
    expected = [
        *(["t", "a", "x\n ÿ🚀", "1"], ["t,", "message", '{"n": 12345678901234567890,"data":"}"}', ","]),
        *(["", "relay.gap", "[]", ","], ["", "message", "", ","], ",", 8),
    ]
    with serving() as server:
        watch(browser, server)
        script = f"""(() => {{
            const text = {json.dumps(PIECES)}, results = new Set();
            const read = (pieces) => {{
                const events = [], parser = new Parser("", () => {{}}, (...event) => events.push(event));
                for (const piece of pieces) parser.feed(piece);
                results.add(JSON.stringify([...events, parser.lastId, parser.retryMs]));
            }};
            read([text]);
            read(text.split(""));
            for (let cut = 0; cut <= text.length; cut += 1) read([text.slice(0, cut), text.slice(cut)]);
            return [...results].map((each) => JSON.parse(each));
        }})()"""
        assert browser.value(script) == [expected]


