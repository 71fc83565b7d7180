"""The JavaScript client in Chromium: tokens across origins, and one connection for all tabs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlencode

import pytest

from loadtest.rig.cable import Cable
from tests import ROOT
from tests.auth.test_access import JWT, token
from tests.browser import Browser
from tests.js.harness import DIST, MODULES, need_built, site
from tests.running import Relay, eventually

FLAGS = ("--cors-origin", "*", "--retry-min", "50ms", "--retry-max", "100ms")
REACT = ROOT / "examples" / "react"


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """An origin with the package and the page of a tab. Each test has an origin of its own."""
    need_built()
    shutil.copytree(DIST, tmp_path / "dist")
    shutil.copy(Path(__file__).with_name("tab.html"), tmp_path / "tab.html")
    with site(tmp_path) as address:
        yield address


class Tabs:
    """Tabs of one origin with a source each. The browser's own page opens them.

    Args:
        browser: the browser.
        origin: of the tabs.
        url: of the server.
        options: of each source, in the query of the page.
    """

    def __init__(self, browser: Browser, origin: str, url: str, **options: str) -> None:
        self._browser = browser
        self._page = f"{origin}/tab.html"
        self._options = {"relay": url, **options}
        browser.open(f"{origin}/dist/")
        browser.value("void (window.tabs = [])")

    def open(self, state: str = "open", **options: str) -> int:
        """Open a tab, wait until its source has a state, and return the number of the tab."""
        address = f"{self._page}?{urlencode(self._options | options)}"
        self._browser.call("Runtime.evaluate", expression=f"tabs.push(open({json.dumps(address)}))", userGesture=True)
        number: int = self._browser.value("tabs.length - 1")
        self._browser.wait(f"tabs[{number}]?.states?.includes({json.dumps(state)})")
        return number

    def wait(self, number: int, data: Sequence[str]) -> None:
        """Wait until a tab has received events, and check that these are all."""
        self._browser.wait(f"tabs[{number}].data.length >= {len(data)}")
        assert self._browser.value(f"[...tabs[{number}].data]") == list(data)

    def states(self, number: int) -> list[str]:
        """Return the changes of the state of a tab's source."""
        states: list[str] = self._browser.value(f"[...tabs[{number}].states]")
        return states

    def close(self, number: int) -> None:
        """Close a tab."""
        self._browser.value(f"void tabs[{number}].close()")

    def leave(self, number: int) -> None:
        """Close the source of a tab that stays open."""
        self._browser.value(f"void tabs[{number}].source.close()")


@pytest.fixture
def closing(browser: Browser) -> Iterator[None]:
    """Close the tabs after the test."""
    yield
    browser.value("void window.tabs?.forEach((tab) => tab.close())")


def wait_streams(server: Relay, count: int) -> None:
    eventually(lambda: server.stats()["streams"] == count, f"the server has {count} streams")


@contextlib.contextmanager
def browsing(*arguments: str) -> Iterator[Relay]:
    """Run a relay; the browser may keep connections to it."""
    server = Relay(*arguments)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)


@pytest.mark.usefixtures("closing")
def test_a_page_of_another_origin_sends_its_token(browser: Browser, origin: str) -> None:
    with browsing(*JWT, *FLAGS) as server:
        tabs = Tabs(browser, origin, server.url)
        tab = tabs.open(token=token(relay={"subscribe": ["news"]}))
        server.publish("one", "news")
        tabs.wait(tab, ["one"])
        tabs.open("closed 401", token="wrong")


WORKER = {"share": "tests"}
NO_WORKER = {"share": "tests", "noworker": "1"}
NO_SCRIPT = {"share": "tests", "worker": "missing.js"}


@pytest.mark.usefixtures("closing")
@pytest.mark.parametrize("options", [WORKER, NO_WORKER, NO_SCRIPT], ids=["worker", "no-worker", "no-script"])
def test_tabs_share_one_connection_until_the_last_one_leaves(
    browser: Browser, origin: str, options: dict[str, str]
) -> None:
    with browsing(*FLAGS) as server, contextlib.closing(Cable(server.port)) as cable:
        tabs = Tabs(browser, origin, f"http://127.0.0.1:{cable.port}", **options)
        numbers = [tabs.open() for _ in range(3)]
        assert server.stats()["streams"] == 1
        published = ["one", "x" * 100_000, "three"]
        server.publish("one", "news")
        tabs.wait(numbers[-1], published[:1])
        cable.cut_after(20_000)
        for data in published[1:]:
            server.publish(data, "news")
        for number in numbers:
            tabs.wait(number, published)
        # The first tab has the connection if there is no worker.
        for index, left in enumerate(numbers[:-1]):
            (tabs.close if index else tabs.leave)(left)
            for _ in range(20):
                published.append(str(len(published)))
                server.publish(published[-1], "news")
            tabs.wait(numbers[-1], published)
            assert server.stats()["streams"] == 1
        # A tab that is closed may report the loss of its connection before the next tab has one.
        assert tabs.states(numbers[-1])[-1] == "open"
        if options is WORKER:
            assert tabs.states(numbers[-1]) == ["open", "connecting 0", "open"]
        tabs.leave(numbers[-1])
        wait_streams(server, 0)
        # A later tab begins with the next event.
        server.publish("missed by design", "news")
        again = tabs.open()
        server.publish("next", "news")
        tabs.wait(again, ["next"])


@pytest.mark.usefixtures("closing")
@pytest.mark.parametrize("options", [WORKER, NO_WORKER], ids=["worker", "no-worker"])
def test_a_shared_connection_uses_the_token_of_a_tab_that_is_open(
    browser: Browser, origin: str, options: dict[str, str]
) -> None:
    with browsing(*JWT, *FLAGS, "--max-age", "2s") as server:
        tabs = Tabs(browser, origin, server.url, token=token(relay={"subscribe": ["news"]}), **options)
        first, second = tabs.open(), tabs.open()
        tabs.close(first)
        eventually(lambda: server.stats()["closes"].get("age", 0) >= 1, "a stream has reached its maximum age")
        wait_streams(server, 1)
        server.publish("one", "news")
        tabs.wait(second, ["one"])
        assert browser.value(f"tabs[{second}].asked") >= 1


@pytest.mark.usefixtures("closing")
def test_a_tab_takes_over_when_the_worker_ends(browser: Browser, origin: str) -> None:
    with browsing(*FLAGS) as server:
        tabs = Tabs(browser, origin, server.url, **WORKER)
        numbers = [tabs.open(), tabs.open()]
        server.publish("one", "news")
        for number in numbers:
            tabs.wait(number, ["one"])
        targets = browser.call("Target.getTargets", filter=[{"type": "shared_worker"}])["targetInfos"]
        [worker] = [each["targetId"] for each in targets if each["url"].startswith(origin)]
        browser.call("Target.closeTarget", targetId=worker)
        published = ["one", *map(str, range(20))]
        for data in published[1:]:
            server.publish(data, "news")
        for number in numbers:
            tabs.wait(number, published)
        assert server.stats()["streams"] == 1


@pytest.mark.usefixtures("closing")
def test_a_shared_source_closes_in_each_tab_when_its_topic_has_ended(browser: Browser, origin: str) -> None:
    with browsing(*FLAGS) as server:
        tabs = Tabs(browser, origin, server.url, **WORKER)
        numbers = [tabs.open(), tabs.open()]
        server.publish('{"event": "relay.end", "data": "bye"}', "news", "application/json")
        for number in numbers:
            browser.wait(f"tabs[{number}].states.at(-1) === 'closed 204'")


@pytest.mark.usefixtures("closing")
def test_the_hook_of_react_shows_events_and_gaps(browser: Browser, tmp_path: Path) -> None:
    need_built()
    esbuild = ROOT / "clients" / "js" / "node_modules" / ".bin" / "esbuild"
    if not (MODULES / "react-dom").is_dir() or not esbuild.exists():
        pytest.skip("React or esbuild is not installed: `make test` installs them with npm")
    subprocess.run(
        [
            *(str(esbuild), str(REACT / "app.tsx"), "--bundle", "--jsx=automatic", "--format=esm", "--log-level=error"),
            *(f"--alias:relay-sse={DIST / 'index.js'}", f"--outfile={tmp_path / 'app.js'}"),
        ],
        env={**os.environ, "NODE_PATH": str(MODULES)},
        check=True,
    )
    shutil.copy(REACT / "index.html", tmp_path)
    shutil.copy(DIST / "worker.js", tmp_path)
    with site(tmp_path) as origin, browsing(*FLAGS) as server:
        browser.open(f"{origin}/index.html?{urlencode({'relay': server.url})}")
        browser.wait("document.querySelector('#state')?.textContent === 'open'")
        wait_streams(server, 1)
        for data in ("one", "<b>two</b>"):
            server.publish(data, "news")
        browser.wait("document.querySelectorAll('#events li').length === 2")
        assert browser.texts("#events li") == ["one", "<b>two</b>"]
        server.publish('{"event": "relay.end", "data": "bye"}', "news", "application/json")
        browser.wait("document.querySelector('#state').textContent === 'closed'")
        assert browser.text("#missed") == "0"
