"""A new setting changes one file, the module of its group in relay/config/settings.

Each test runs a copy of the package with one more setting.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import ROOT
from tests.running import TIMEOUT_S, environment

SETTING = '    sample_wait_s: float = setting(7.0, "Time that a sample waits.", "duration")\n'


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the changed copy of the package."""
    folder = tmp_path_factory.mktemp("changed")
    shutil.copytree(ROOT / "relay", folder / "relay", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "relay" / "config" / "settings" / "telemetry.py").open("a") as module:
        module.write(SETTING)
    return folder


def run(changed: Path, *arguments: str, **variables: str) -> str:
    """Run Python in the folder of the changed copy. Return the output."""
    variables = {"PYTHONPATH": str(ROOT), "COLUMNS": "120", **variables}
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=changed,
        env=environment(**variables),
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def value(changed: Path, *flags: str, **variables: str) -> object:
    """Return the value of the new setting that is in force."""
    output = run(changed, "-m", "relay", "serve", "--print-config", *flags, **variables)
    return tomllib.loads(output)["sample-wait"]


def test_flag_variable_and_file_set_it(changed: Path) -> None:
    file = changed / "relay.toml"
    file.write_text('sample-wait = "1s"\n')
    assert value(changed) == "7s"
    assert value(changed, "--config", str(file)) == "1s"
    assert value(changed, "--config", str(file), RELAY_SAMPLE_WAIT="2s") == "2s"
    assert value(changed, "--config", str(file), "--sample-wait", "3s", RELAY_SAMPLE_WAIT="2s") == "3s"


def test_help_lists_it(changed: Path) -> None:
    text = run(changed, "-m", "relay", "serve", "--help")
    assert "--sample-wait DURATION" in text
    assert "Time that a sample waits.  [default: 7s]" in text


def test_the_page_of_settings_describes_it(changed: Path) -> None:
    text = run(changed, "-c", "from tests import reference; print(reference.settings_page())")
    assert "### sample-wait\n\nTime that a sample waits.\n\n`RELAY_SAMPLE_WAIT` · duration · default: `7s`\n" in text
