"""The source tree keeps its rules: unique class names, tests for each module, short modules, one import direction."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

LINES_MAX = 400
REASON = "longer than 400 lines because"
"""The phrase in the docstring of a longer module that precedes its reason."""


def modules(*folders: str) -> list[Path]:
    """Return the project's Python files in some folders."""
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in paths if not {".installed", "node_modules", "peers"} & set(path.parts)]


@cache
def parsed(path: Path) -> ast.Module:
    """Parse a file."""
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, and the names that it imports from them."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_two_classes_share_a_name() -> None:
    places = defaultdict(list)
    for path in modules("relay", "bench", "loadtest"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize(("folder", "forbidden"), [("loadtest", {"bench", "tests"}), ("bench", {"tests"})])
def test_load_tests_and_benchmarks_import_in_one_direction(folder: str, forbidden: set[str]) -> None:
    for path in modules(folder):
        assert {name.partition(".")[0] for name in imported(path)} & forbidden == set(), path


def test_every_module_is_named_by_a_test() -> None:
    named = set()
    for path in modules("tests"):
        named |= imported(path)
        words = (ast.get_docstring(parsed(path)) or "").replace("`", " ").split()
        named |= {word.rstrip(".,;:)") for word in words}
    missing = []
    for path in modules("relay"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if path.name != "__init__.py" and name not in named:
            missing.append(name)
    assert missing == []


def test_a_long_module_states_its_reason() -> None:
    unexplained = []
    for path in modules("relay"):
        text = path.read_text()
        if text.count("\n") > LINES_MAX and REASON not in (ast.get_docstring(ast.parse(text)) or ""):
            unexplained.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
    assert unexplained == []


def test_each_file_that_the_pages_on_the_architecture_name_exists() -> None:
    for page in (ROOT / "docs" / "architecture").glob("*.md"):
        for name in re.findall(r"`((?:relay|_speedups|tests|docs|clients)/[\w./-]*)`", page.read_text()):
            assert (ROOT / name).exists(), (page.name, name)
