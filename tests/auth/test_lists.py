"""Files of tokens and revocations: an unusable line is skipped, and reported by its number."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.auth.lists import LINES_MAX, Listed, read_revoked, read_tokens
from relay.errors import ConfigError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "list"


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_file_of_tokens_has_one_per_line_and_comments(path: Path, start: bytes, end: bytes) -> None:
    path.write_bytes(start + end.join((b"one", b"# feeders", b"", b"  two\t # of ann", b"three#3", b"#four", b"five#")))
    assert read_tokens(str(path), "x").items == {"one", "two", "three#3", "five#"}
    assert read_tokens(str(path), "x").skipped == ()


@pytest.mark.parametrize("bad", [b"two words", b"\xff\xfe", "é".encode(), b"a\0b", b"a\x0bb", b"\x1b[0m"])
def test_a_bad_line_does_not_invalidate_the_file_of_tokens(path: Path, bad: bytes) -> None:
    path.write_bytes(b"one\n" + bad + b"\ntwo\n")
    listed = read_tokens(str(path), "x")
    assert listed == Listed(frozenset({"one", "two"}), (2,))
    path.write_bytes(bad)
    with pytest.raises(ConfigError, match="no line of"):
        read_tokens(str(path), "x")


def test_a_revocation_applies_with_and_without_its_possible_comment(path: Path) -> None:
    path.write_bytes("\ufeffann # left\nbob\n\xe9va ray\n# none\nc#d\n".encode() + b"\xff\n")
    listed = read_revoked(str(path), "x")
    assert listed.items == {"ann", "ann # left", "bob", "éva ray", "c#d"}
    assert listed.skipped == (6,)


def test_a_file_that_is_missing_or_too_large_is_an_error(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"publish-token-file: .*No such file"):
        read_tokens(str(path), "publish-token-file")
    path.write_bytes(b"a\n" * (LINES_MAX + 1))
    with pytest.raises(ConfigError, match="more than 100000 lines"):
        read_revoked(str(path), "x")
    path.write_bytes(b"a" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_revoked(str(path), "x")
    path.write_bytes(b"")
    assert read_tokens(str(path), "x").items == frozenset()


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (b"<!DOCTYPE html>\n<html>\n<body>\n</body>\n</html>\n", "a page of HTML or XML"),
        (b"\xef\xbb\xbf\r\n<html><head><title>503</title></head></html>", "a page of HTML or XML"),
        (b'<?xml version="1.0"?>\n<Error>\n</Error>', "a page of HTML or XML"),
        (b"# the key\n-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n", "a PEM file"),
        (b'{"errors":["denied"]}\n', "JSON"),
        (b'[\n"ann",\n"bob"\n]', "JSON"),
    ],
)
def test_a_document_is_not_a_list(path: Path, document: bytes, kind: str) -> None:
    path.write_bytes(document)
    for read in (read_tokens, read_revoked):
        with pytest.raises(ConfigError, match=f"x: .* is {kind}, and not a list with one entry per line"):
            read(str(path), "x")


def test_an_entry_may_look_like_the_start_of_a_document(path: Path) -> None:
    path.write_bytes(b"{one\n<two>\n[three\n")
    assert read_tokens(str(path), "x").items == read_revoked(str(path), "x").items == {"{one", "<two>", "[three"}
