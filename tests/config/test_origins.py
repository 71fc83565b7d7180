"""An origin or host in the settings has the form that a browser sends, or the error shows the right spelling."""

from __future__ import annotations

import pytest

from relay.config.origins import Allowed, check_host, check_origin, spell_origin


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://example.com",
        "http://example.com:8080",
        "https://example.com:80",
        "https://a-b.example.com",
        "https://my_host",
        "https://xn--bcher-kva.example",
        "https://example.com.",
        "http://localhost:*",
        "http://127.0.0.1:3000",
        "http://[::1]:*",
        "https://*.example.com",
        "https://*.example.com:*",
        "https://*.example.com:8443",
        "chrome-extension://abcdefghijklmnop",
        "capacitor://localhost",
    ],
)
def test_an_origin_that_a_browser_sends_is_accepted(origin: str) -> None:
    check_origin(origin)


@pytest.mark.parametrize(
    ("origin", "spelled"),
    [
        ("https://example.com:443", "https://example.com"),
        ("http://example.com:80", "http://example.com"),
        ("http://example.com:0080", "http://example.com"),
        ("https://example.com:", "https://example.com"),
        ("https://example.com/", "https://example.com"),
        ("https://example.com/app?x=1#top", "https://example.com"),
        ("https://example.com\\app", "https://example.com"),
        ("HTTPS://Example.COM", "https://example.com"),
        ("https://user:word@example.com", "https://example.com"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://EXAMPLE。com", "https://example.com"),
        ("https://*.bücher.example", "https://*.xn--bcher-kva.example"),
        (" https://example.com", "https://example.com"),
        ("wss://example.com", "https://example.com"),
        ("example.com", "https://example.com"),
        ("localhost:3000", "https://localhost:3000"),
        ("*.example.com", "https://*.example.com"),
        ("http://127.1", "http://127.0.0.1"),
        ("http://0x7f000001:80", "http://127.0.0.1"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("http://[FE80::1]:1", "http://[fe80::1]:1"),
    ],
)
def test_another_spelling_is_rejected_and_the_error_shows_the_right_one(origin: str, spelled: str) -> None:
    with pytest.raises(ValueError, match="no browser sends") as caught:
        check_origin(origin)
    assert f"write {spelled}" in str(caught.value)
    check_origin(spelled)
    assert spell_origin(spelled) == spelled


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "NULL",
        "file:///index.html",
        "data:text/html,x",
        "https://",
        "https://:80",
        "https://*",
        "https://*:*",
        "*://example.com",
        "https://a.*.example.com",
        "https://app-*.example.com",
        "https://example.*",
        "https://*.*.example.com",
        "https://*example.com",
        "https://*.127.0.0.1",
        "https://example.com:80*",
        "https://example.com:65536",
        "https://example.com:x",
        "https://a.example,https://b.example",
        "https://a.example https://b.example",
        "https://a..example",
        "https://exa mple.com",
        "https://1.2.3.4.5",
        "http://[::1",
        "http://[::1%25lo]",
        "http://::1",
        "https://straße.example",
    ],
)
def test_an_invalid_origin_is_rejected_with_examples(origin: str) -> None:
    with pytest.raises(ValueError, match=r"write an origin such as https://example\.com"):
        check_origin(origin)


def test_a_wildcard_matches_whole_labels_or_a_port_but_no_similar_hosts() -> None:
    allowed = Allowed(("https://*.example.com", "http://localhost:*", "https://*.any.example:*"))
    for origin in (
        "https://a.example.com",
        "https://a.b.example.com",
        "https://xn--bcher-kva.example.com",
        "http://localhost",
        "http://localhost:1",
        "http://localhost:65535",
        "https://a.any.example",
        "https://a.any.example:8443",
    ):
        assert allowed.lists(origin), origin
    for origin in (
        "https://example.com",
        "https://evilexample.com",
        "https://evil-example.com",
        "https://.example.com",
        "https://example.com.evil",
        "https://a.example.com.evil",
        "https://a.example.com@evil",
        "https://evil/.example.com",
        "https://evil?.example.com",
        "https://evil#.example.com",
        "https://evil:1.example.com",
        "https://a.exampleXcom",
        "https://a.example.com:444",
        "http://a.example.com",
        "https://a.example.com\n",
        "https://A.example.com",
        "http://localhost:",
        "http://localhost:1.evil",
        "http://localhost.evil:1",
        "http://evil.localhost:1",
        "null",
        "*",
        "",
    ):
        assert not allowed.lists(origin), origin


def test_any_origin_lists_no_origin() -> None:
    assert Allowed(("*",)).any
    assert not Allowed(("*",)).lists("https://a.example")
    assert not Allowed(("*",)).lists("*")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "example.com", "*.example.com", "my_host"])
def test_a_valid_host_is_accepted(host: str) -> None:
    check_host(host)


@pytest.mark.parametrize(
    ("host", "spelled"),
    [
        ("localhost:8080", "localhost"),
        ("localhost:*", "localhost"),
        ("LocalHost", "localhost"),
        ("example.com.", "example.com"),
        ("https://example.com/app", "example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("::1", "[::1]"),
        ("[::1]:80", "[::1]"),
        ("[0::1]", "[::1]"),
        ("127.1", "127.0.0.1"),
    ],
)
def test_a_host_that_never_matches_is_rejected_and_the_error_shows_the_right_one(host: str, spelled: str) -> None:
    with pytest.raises(ValueError, match="never matches") as caught:
        check_host(host)
    assert f"write {spelled} " in str(caught.value)
    check_host(spelled)


@pytest.mark.parametrize("host", ["", "*", "a b", "a,b", "a.*.b", "[::1", "*.127.0.0.1"])
def test_an_invalid_host_is_rejected_with_examples(host: str) -> None:
    with pytest.raises(ValueError, match=r"write a host such as example\.com"):
        check_host(host)
