"""The pages of trust are complete: each dependency has a row, CI pins it, and the threat model names real tests."""

from __future__ import annotations

import re
import tomllib

from tests import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OWN = PROJECT["project"]["name"]
ARCHITECTURE = ROOT / "docs" / "architecture"
NOT_PINNED = {"atheris"}
"""Only `make fuzz` installs it."""
FOR_DEVELOPERS = {"bench", "docs", "fuzz", "load", "test"}
"""The extras that users do not install."""


def normal(name: str) -> str:
    """Return the normal form of the name of a distribution (PyPA, name normalization)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies() -> set[str]:
    """Return the names of all dependencies of pyproject.toml, as written."""
    project = PROJECT["project"]
    requirements = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    requirements += [each for extra in project["optional-dependencies"].values() for each in extra]
    names = {re.split(r"[\[<>=;~! ]", each)[0] for each in requirements}
    return names - {OWN}


def test_each_dependency_has_a_row_and_each_row_is_a_dependency() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", (ARCHITECTURE / "dependencies.md").read_text(), re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named) == sorted(dependencies())


def test_ci_pins_each_dependency() -> None:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.partition("==")[0]) for line in lines if not line.startswith("#")}
    assert all("==" in line for line in lines if not line.startswith("#"))
    assert {normal(name) for name in dependencies() - NOT_PINNED} <= pinned, "run `make lock`"


def test_the_bill_of_materials_covers_each_extra_for_users() -> None:
    [extras] = re.findall(r"\bextras=(\S+)", (ROOT / ".ci" / "release").read_text())
    assert extras.split(",") == sorted(PROJECT["project"]["optional-dependencies"].keys() - FOR_DEVELOPERS)


def test_the_threat_model_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (ARCHITECTURE / "threat-model.md").read_text()))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_workflows_name_actions_by_hash() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for action in re.findall(r"uses: (.*)", path.read_text()):
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v[\d.]+", action), (path, action)
