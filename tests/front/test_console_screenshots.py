"""The console looks like its reference images: light, dark and on a phone.

The clock, the figures, the events and the fonts are fixed. The images are compared at a quarter of their size with a
tolerance, because browsers draw the edges of letters differently. After a deliberate change, `make screenshots` writes
the references again. If an image differs, build/screenshots has the new image and the difference.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image, ImageChops

from tests import ROOT
from tests.browser import Browser
from tests.front.test_page_browser import serving
from tests.running import Relay

REFERENCES = Path(__file__).with_name("screenshots")
OUTPUT = ROOT / "build" / "screenshots"
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
REDUCTION = 2
"""The references have this fraction of the width and the height, and are reduced once more before a comparison."""

LEVEL_MAX = 12
"""Difference of a colour, of 255, that does not count."""

SHARE_MAX = 0.0015
"""Share of the pixels that may differ by more than that."""

FREEZE = """
const RealDate = Date, NOW_MS = 1767261600000;
Date = class extends RealDate {
  constructor(...parts) { if (parts.length) super(...parts); else super(NOW_MS); }
  static now() { return NOW_MS; }
};
setInterval = () => 0;
fetch = () => new Promise(() => {});
"""

FILL = """
(async () => {
  const bytes = Uint8Array.from(atob("%(font)s"), (letter) => letter.charCodeAt(0));
  document.fonts.add(await new FontFace("Fixed", bytes).load());
  const style = new CSSStyleSheet();
  style.replaceSync("* { font-family: Fixed !important; caret-color: transparent !important; }");
  document.adoptedStyleSheets = [style];
  const stats = %(stats)s;
  for (let step = 0; step < 60; step += 1) {
    const wave = Math.round(400 * (1 + Math.sin(step / 6)));
    stats.uptime_s += 2;
    stats.events += 100 + wave;
    stats.deliveries += 3000 + 4 * wave;
    stats.topics.forEach((topic, place) => { topic.events += (100 + wave) >> place; });
    about(structuredClone(stats));
    for (const [name, ms] of [["p50", 1], ["p99", 4]]) push(name, (ms + Math.cos(step / 4)) / 1000);
  }
  find("p50").textContent = "1.2 ms";
  find("p99").textContent = "4.8 ms";
  drawCharts();
  show("open", "connected");
  %(events)s.forEach(([topic, type, data], place) => stream.take(topic, type, data, "Xq3-" + (100 + place)));
  draw();
  tick();
  choose(find("rows").children[1]);
  openDetail();
  find("publish").open = true;
  document.activeElement.blur();
  scrollTo(0, 0);
})()
"""

STATS = {
    "version": "1.0.0",
    "engine": "speedups",
    "streams": 12345,
    "lagging": 2,
    "topics_total": 4,
    "log": {"bytes": 45_000_000, "bytes_max": 67_108_864},
    "uptime_s": 1000.0,
    "events": 100_000,
    "deliveries": 9_000_000,
    "topics": [
        {"topic": name, "events": 1000, "subscribers": 9000 >> place}
        for place, name in enumerate(("prices.acme", "chat.lobby", "metrics.load", "orders.eu"))
    ],
    "slowest": [
        {
            "address": f"192.0.2.{place}:50000",
            "topics": ["prices.*"],
            "policy": policy,
            "lag_events": 4200,
            "lag_bytes": 900_000,
            "lag_s": 3.5,
        }
        for place, policy in enumerate(("conflate", "drop-oldest"), 1)
    ],
    "forms": {"chunked": 12000, "gzip": 345},
    "policy_actions": {"conflate": 17},
    "closes": {"client": 40, "drain": 2},
}

EVENTS = [
    *(
        ["prices.acme", "price", json.dumps({"symbol": "ACME", "price": price, "t": 1767261599990})]
        for price in range(120, 126)
    ),
    ["", "relay.gap", json.dumps({"reason": "history", "missed": 12, "from": "Xq3-80", "to": "Xq3-91"})],
    ["chat.lobby", "message", "a line of text, which is not JSON"],
    ["prices.acme", "price", json.dumps({"symbol": "ACME", "bid": [119.5, 120], "halted": False, "note": None})],
    ["chat.lobby", "message", "the newest event"],
]


@dataclass(frozen=True, slots=True)
class Scene:
    """One reference image: its name, the colour scheme, and the size of the window."""

    name: str
    scheme: str
    width: int
    height: int


SCENES = (
    Scene("light", "light", 1280, 1840),
    Scene("dark", "dark", 1280, 1840),
    Scene("phone", "light", 360, 3400),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Relay]:
    with serving() as running:
        yield running


@contextlib.contextmanager
def console(browser: Browser, server: Relay, scene: Scene) -> Iterator[None]:
    """Open the console with fixed contents."""
    size = {"width": scene.width, "height": scene.height}
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=FREEZE)
    try:
        browser.call("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scene.scheme}])
        browser.call("Emulation.setTimezoneOverride", timezoneId="UTC")
        browser.call("Emulation.setLocaleOverride", locale="en-GB")
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.open(f"{server.url}/?topic=prices.acme&topic=chat.lobby")
        fill: dict[str, Any] = {"font": base64.b64encode(FONT.read_bytes()).decode()}
        fill |= {"stats": json.dumps(STATS), "events": json.dumps(EVENTS)}
        browser.value(FILL % fill)
        yield
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
        browser.call("Emulation.clearDeviceMetricsOverride")
        browser.call("Emulation.setEmulatedMedia", features=[])
        browser.call("Emulation.setTimezoneOverride", timezoneId="")
        browser.call("Emulation.setLocaleOverride")
        browser.call("Emulation.setScrollbarsHidden", hidden=False)


def photograph(browser: Browser, path: Path) -> Image.Image:
    """Return a screenshot, reduced to the size of the references."""
    browser.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    browser.screenshot(path)
    with Image.open(path) as image:
        return image.convert("RGB").reduce(REDUCTION)


def difference(one: Image.Image, other: Image.Image) -> Image.Image:
    """Return an image that is white where two images differ."""
    parts = ImageChops.difference(one.reduce(REDUCTION), other.reduce(REDUCTION)).split()
    greatest = ImageChops.lighter(ImageChops.lighter(parts[0], parts[1]), parts[2])
    return greatest.point(lambda level: 255 if level > LEVEL_MAX else 0)


def share(mask: Image.Image) -> float:
    """Return the share of white pixels."""
    return mask.histogram()[255] / (mask.width * mask.height)


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_the_console_looks_like_its_reference(browser: Browser, server: Relay, scene: Scene, tmp_path: Path) -> None:
    reference = REFERENCES / f"{scene.name}.png"
    with console(browser, server, scene):
        found = photograph(browser, tmp_path / "found.png")
    if os.environ.get("SCREENSHOTS") == "write":
        found.save(reference, optimize=True)
    with Image.open(reference) as image:
        expected = image.convert("RGB")
    assert found.size == expected.size
    mask = difference(found, expected)
    if share(mask) > SHARE_MAX:
        OUTPUT.mkdir(parents=True, exist_ok=True)
        found.save(OUTPUT / f"{scene.name}.png")
        mask.save(OUTPUT / f"{scene.name}-difference.png")
    assert share(mask) <= SHARE_MAX, f"compare {reference} with {OUTPUT}/{scene.name}.png; deliberate: make screenshots"


@pytest.mark.parametrize(
    "fault",
    [
        "document.querySelector('style').remove()",
        "document.documentElement.style.setProperty('--accent', '#d62484')",
        "document.querySelector('.columns').style.display = 'block'",
        "for (const each of document.querySelectorAll('td, th')) each.style.padding = '0'",
        "for (const each of document.querySelectorAll('button')) each.style.border = '3px solid black'",
    ],
)
def test_a_broken_stylesheet_differs_from_the_reference(
    browser: Browser, server: Relay, fault: str, tmp_path: Path
) -> None:
    with console(browser, server, SCENES[0]):
        whole = photograph(browser, tmp_path / "whole.png")
        browser.value(fault)
        broken = photograph(browser, tmp_path / "broken.png")
    assert share(difference(broken, whole)) > 2 * SHARE_MAX
