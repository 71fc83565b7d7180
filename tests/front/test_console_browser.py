"""The console in a real browser: topics, search, JSON, charts, publishing, tokens, code, keys, and small screens.

`tests.front.test_page_browser` covers the stream itself. Without Chromium, these tests are skipped; in CI they fail.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from tests.browser import Browser
from tests.front.test_page_browser import publish, received, serving
from tests.running import TIMEOUT_S, TOKEN, Relay, Stream, eventually

ADMIN = "an-admin-token-for-tests"


@pytest.fixture(scope="module")
def server() -> Iterator[Relay]:
    with serving() as running:
        yield running


def key(browser: Browser, selector: str, name: str) -> None:
    """Press a key while an element has the focus."""
    event = f"new KeyboardEvent('keydown', {{key: {json.dumps(name)}, bubbles: true, cancelable: true}})"
    browser.value(f"document.querySelector({json.dumps(selector)}).dispatchEvent({event})")


def write(browser: Browser, selector: str, text: str) -> None:
    """Replace the content of a field."""
    browser.value(
        f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(text)};"
        " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def shown_rows(browser: Browser) -> list[str]:
    """Return the data of the rows that the search has not hidden."""
    return browser.texts("#rows tr:not([hidden]) td.data")


def show(browser: Browser, server: Relay, topic: str, *events: dict[str, object]) -> None:
    """Open the page at a topic of its own, and publish."""
    browser.open(f"{server.url}/?topic={topic}")
    browser.wait("document.querySelector('#state').textContent === 'connected'")
    publish(server, *events, topic=topic)
    received(browser, len(events))
    browser.wait(f"document.querySelectorAll('#rows tr').length === {len(events)}")


def test_the_search_hides_other_events_and_those_that_arrive_later(browser: Browser, server: Relay) -> None:
    show(browser, server, "search", {"data": "Apple pie"}, {"data": "pear"}, {"event": "apple", "data": "x pie"})
    write(browser, "#search", "APPLE pie")
    assert shown_rows(browser) == ["x pie", "Apple pie"]
    publish(server, {"data": "plum"}, {"data": "an apple, no pie"}, topic="search")
    browser.wait("document.querySelectorAll('#rows tr').length === 5")
    assert shown_rows(browser) == ["an apple, no pie", "x pie", "Apple pie"]
    browser.wait("/ 3 of them match/.test(document.querySelector('#note').textContent)")
    write(browser, "#search", "")
    assert len(shown_rows(browser)) == 5


def test_an_event_is_selected_by_keys_and_its_json_is_formatted_without_rounding(
    browser: Browser, server: Relay
) -> None:
    data = '{"n":12345678901234567890,"list":[1.0,{"a\\"b":"</pre>, {x}"}],"none":{},"t":true}'
    show(browser, server, "json", {"data": "not {json"}, {"data": data})
    key(browser, "#tail", "ArrowDown")
    key(browser, "#tail", "Enter")
    expected = (
        '{\n  "n": 12345678901234567890,\n  "list": [\n    1.0,\n    {\n      "a\\"b": "</pre>, {x}"\n    }\n  ],\n'
        '  "none": {},\n  "t": true\n}'
    )
    assert browser.texts("#detail-data") == [expected]
    assert browser.texts("#detail-data .key") == ['"n"', '"list"', '"a\\"b"', '"none"', '"t"']
    key(browser, "#tail", "ArrowDown")
    assert browser.texts("#detail-data") == ["not {json"]
    key(browser, "#tail", "Escape")
    assert browser.value("document.querySelector('#detail').hidden") is True
    browser.click("#rows tr:first-child td.data")
    assert browser.texts("#detail-data") == [expected]


def test_topics_have_rates_and_are_added_and_removed_by_a_click(browser: Browser) -> None:
    with serving() as server:
        publish(server, {"data": "1"}, topic="alpha")
        publish(server, {"data": "1"}, topic="beta")
        browser.open(server.url)
        names = "[...document.querySelectorAll('#known button')].map((each) => each.textContent)"
        browser.wait(f"{names}.length === 2")
        browser.wait("before !== null && series.events.length > 0")
        publish(server, *({"data": str(number)} for number in range(200)), topic="beta")
        browser.wait(f"{names}[0] === 'beta' && Number(document.querySelector('#known .number').textContent) > 10")
        assert browser.text("#no-lag") == "No stream lags."
        write(browser, "#find-topic", "ALP")
        assert browser.value(names) == ["alpha"]
        browser.click("#known button")
        browser.wait("document.querySelector('#state').textContent === 'connected'")
        assert browser.texts("#topics button") == ["alpha"]
        eventually(lambda: server.stats()["streams"] == 1, "the stream is open")
        browser.click("#known tr.chosen button")
        browser.wait("document.querySelector('#state').textContent === 'not connected'")


def test_charts_show_throughput_and_latency(browser: Browser, server: Relay) -> None:
    browser.open(f"{server.url}/?topic=charts")
    browser.wait("document.querySelector('#state').textContent === 'connected'")
    browser.wait("buckets !== null && series.events.length > 0")
    publish(server, *({"data": str(number)} for number in range(50)), topic="charts")
    browser.wait("series.p99.some((each) => each > 0) && Math.max(...series.deliveries) > 0")
    assert browser.text("#p99").endswith(" ms") or browser.text("#p99") == "n/a"
    for name in ("throughput", "latency"):
        assert ", at most " in browser.value(f"document.querySelector('#{name}').getAttribute('aria-label')")
        drawn = f"new Set(new Uint32Array(document.querySelector('#{name}').getContext('2d')"
        drawn += ".getImageData(0, 0, 300, 60).data.buffer)).size"
        assert browser.value(drawn) > 1


def test_percentiles_interpolate_within_a_bucket(browser: Browser, server: Relay) -> None:
    browser.open(server.url)
    assert browser.value("percentile([[1, 0], [2, 10], [4, 20], [Infinity, 20]], 0.5)") == 2
    assert browser.value("percentile([[1, 0], [2, 10], [4, 20], [Infinity, 20]], 0.75)") == 3
    assert browser.value("percentile([[1, 5], [Infinity, 10]], 0.99)") == 1
    assert browser.value("percentile([[1, 0], [Infinity, 0]], 0.5)") is None


def test_a_slow_stream_is_shown_with_its_policy(browser: Browser) -> None:
    with (
        serving("--lag-bytes", "60MiB") as server,
        Stream(server.port, "topic=slow&policy=conflate", receive_buffer=4096),
    ):
        publish(server, *({"data": "x" * 100_000} for _ in range(40)), topic="slow")
        eventually(lambda: bool(server.stats()["slowest"]), "the stream lags")
        browser.open(server.url)
        browser.wait("document.querySelectorAll('#slowest tr').length === 1")
        cells = browser.texts("#slowest td")
        assert cells[0].startswith("127.0.0.1")
        assert cells[1:3] == ["slow", "conflate"]
        assert int(cells[3].replace(",", "")) > 0
        title = browser.value("document.querySelectorAll('#slowest td')[2].title")
        assert title == "A slow stream receives only the newest event of each key"


def test_a_gap_is_explained(browser: Browser, server: Relay) -> None:
    browser.open(f"{server.url}/?topic=gap")
    browser.wait("document.querySelector('#state').textContent === 'connected'")
    for reason, why in (("history", "history-bytes"), ("unknown", "--data"), ("toString", "")):
        browser.value(f"stream.take('', 'relay.gap', {json.dumps(json.dumps({'reason': reason}))}, '')")
        assert why in browser.texts("#gap-list li")[0]
    assert len(browser.texts("#gap-list .why")) == 2


def test_an_event_is_published_with_a_token_and_its_arrival_is_measured(browser: Browser, server: Relay) -> None:
    browser.open(f"{server.url}/?topic=published")
    browser.wait("document.querySelector('#state').textContent === 'connected'")
    assert browser.value("document.querySelector('#publish-topic').value") == "published"
    result = "document.querySelector('#publish-result').textContent"
    browser.click("#publish-send")
    browser.wait(f"{result} === 'rejected (401): publishing requires a token'")
    write(browser, "#publish-token", TOKEN)
    write(browser, "#publish-event", "tést")
    write(browser, "#publish-data", '{"a": "ü"}')
    browser.click("#publish-send")
    browser.wait(f"/^published as \\S+ in \\d+ ms; received after \\d+ ms$/.test({result})")
    received(browser, 1)
    assert browser.texts("#rows td.data") == ['{"a": "ü"}']
    assert browser.texts("#rows td:nth-child(3)") == ["tést"]
    browser.click("#publish-code")
    code = browser.texts("#code")[0]
    assert TOKEN not in code
    variables = {"PATH": "/usr/bin:/bin", "RELAY_PUBLISH_TOKEN": TOKEN, "NO_PROXY": "*"}
    done = subprocess.run(
        ["bash", "-c", f"{code} --silent"], env=variables, capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert "ids" in done.stdout
    received(browser, 2)
    for place in ("document.cookie", "location.href", "document.documentElement.outerHTML"):
        assert TOKEN not in browser.value(place)
    assert browser.value("localStorage.length + sessionStorage.length") == 0


def test_code_to_copy_names_the_topics_and_no_token(browser: Browser, server: Relay) -> None:
    show(browser, server, "it's", {"data": "one"})
    browser.click("#code-open")
    curl = shlex.split(browser.texts("#code")[0])
    assert curl == ["curl", "-N", f"{server.url}/events?topic=it%27s"]
    browser.click("[data-code=python]")
    python = browser.texts("#code")[0]
    compile(python, "copied.py", "exec")
    assert f'subscribe("{server.url}", ["it\'s"])' in python
    browser.click("[data-code=javascript]")
    assert f'new EventSource("{server.url}/events?topic=it%27s")' in browser.texts("#code")[0]
    browser.value("token = 'a-secret-token'")
    for language in ("curl", "python", "javascript"):
        browser.click(f"[data-code={language}]")
        assert "a-secret-token" not in browser.texts("#code")[0]
    browser.click("#code-close")


def test_topics_and_charts_need_the_admin_token_and_events_do_not(browser: Browser) -> None:
    with serving("--admin-token", ADMIN) as server:
        browser.open(f"{server.url}/?topic=news")
        browser.wait("document.querySelector('#state').textContent === 'connected'")
        browser.wait("document.querySelector('#ask-admin').hidden === false")
        assert browser.value("document.querySelector('#charts').hidden") is True
        publish(server, {"data": "one"})
        received(browser, 1)
        browser.type("#admin-token", ADMIN)
        browser.wait("document.querySelector('#charts').hidden === false")
        assert browser.value("document.querySelector('#ask-admin').hidden") is True
        assert browser.texts("#known button") == ["news"]
        for place in ("document.cookie", "location.href", "document.documentElement.outerHTML"):
            assert ADMIN not in browser.value(place)
        browser.errors.clear()  # the browser reports each 401


def test_keys_reach_every_part(browser: Browser, server: Relay) -> None:
    browser.open(server.url)
    for name, focused in (("/", "search"), ("t", "topic")):
        browser.value("document.activeElement.blur()")
        key(browser, "body", name)
        assert browser.value("document.activeElement.id") == focused
    key(browser, "#topic", "p")  # in a field, a letter is text
    assert browser.text("#pause") == "Pause"
    browser.value("document.activeElement.blur()")
    key(browser, "body", "p")
    assert browser.text("#pause") == "Resume"
    key(browser, "body", "?")
    assert browser.value("document.querySelector('#help-dialog').open") is True
    browser.click("#help-close")
    unnamed = "[...document.querySelectorAll('button, input, textarea')]"
    unnamed += ".filter((each) => !each.textContent && !each.labels?.length)"
    assert browser.value(f"{unnamed}.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_part_fits_a_phone_and_both_colour_schemes(browser: Browser, server: Relay, scheme: str) -> None:
    try:
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        topic = f"phone-{scheme}." + "long" * 20
        show(browser, server, topic, {"data": "x" * 3000}, {"data": json.dumps({"word": "y" * 500})})
        browser.wait("document.querySelector('#charts').hidden === false")
        browser.click("#rows tr:first-child td.data")
        browser.value("document.querySelector('#publish').open = true")
        assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.value("window.innerWidth") == 360
        right = "[...document.querySelectorAll('section')].map((each) => each.getBoundingClientRect().right)"
        assert max(browser.value(right)) <= 360
        dark = "getComputedStyle(document.body).backgroundColor === 'rgb(17, 20, 27)'"
        assert browser.value(dark) is (scheme == "dark")
        assert browser.value(CONTRAST) >= 4.5
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", features=[])


CONTRAST = """Math.min(...["--text", "--soft", "--accent", "--second", "--good", "--warn", "--bad"].map((name) => {
    const light = (name) => {
        const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1);
        const [red, green, blue] = [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
    };
    const [one, two] = [light(name), light("--panel")];
    return Math.max(one, two) / Math.min(one, two);
}))"""
"""The smallest contrast of a text with its panel. WCAG 2.2 demands 4.5."""


def test_the_page_loads_only_its_own_answers(browser: Browser, server: Relay) -> None:
    watch_only = "performance.getEntriesByType('resource').map((each) => new URL(each.name).origin)"
    browser.open(f"{server.url}/?topic=news")
    browser.wait("before !== null")
    assert set(browser.value(watch_only)) == {server.url}
