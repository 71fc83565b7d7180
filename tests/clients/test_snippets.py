"""docs/clients.md shows the snippets that the matrix runs, and the exceptions that it asserts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT
from tests.clients.matrix import IMPOSSIBLE, LATE, TORN, UNNOTICED_CLOSE, UNNOTICED_RESET
from tests.clients.programs import SNIPPETS

PAGE = (ROOT / "docs" / "clients.md").read_text()
FILES = sorted(path for path in SNIPPETS.iterdir() if path.is_file() and path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_page_contains_the_snippet(path: Path) -> None:
    blocks = re.findall(r"^```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert path.read_text() in blocks


@pytest.mark.parametrize("table", [IMPOSSIBLE, LATE, TORN, UNNOTICED_CLOSE, UNNOTICED_RESET])
def test_the_page_states_the_reason_of_each_exception(table: dict[tuple[str, str], str]) -> None:
    text = " ".join(PAGE.split())
    assert [reason for reason in table.values() if reason not in text] == []
