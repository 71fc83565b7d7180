"""The files in share/ equal the generated ones, the shell completes the command line, and man shows the pages.

Covers `tests.manual`.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest
from click.shell_completion import ShellComplete

from relay.cli import relay
from tests import ROOT, manual
from tests.running import run

SHARE = ROOT / "share"


@pytest.mark.filterwarnings("ignore:'click.utils.make_default_short_help' is deprecated")  # click-man calls it
def test_the_files_equal_the_generated_ones() -> None:
    kept = {str(path.relative_to(SHARE)): path.read_text() for path in SHARE.rglob("*") if path.is_file()}
    assert kept == manual.files(), "run `make reference`"


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "", {"serve", "publish", "subscribe", "top", "upgrade", "demo"}),
        ([], "su", {"subscribe"}),
        ([], "--history-b", {"--history-bytes"}),
        ([], "--ver", {"--version"}),
        (["serve"], "--history-b", {"--history-bytes"}),
        (["--listen", ":8080"], "--history-b", {"--history-bytes"}),
        (["--policy"], "disc", {"disconnect"}),
        (["publish"], "--to", {"--to", "--token", "--topic"}),
    ],
)
def test_the_shell_completes_commands_flags_and_choices(words: list[str], incomplete: str, expected: set[str]) -> None:
    found = ShellComplete(relay, {}, "relay", "_RELAY_COMPLETE").get_completions(words, incomplete)
    assert {each.value for each in found} >= expected
    assert all(each.value.startswith(incomplete) for each in found)


def test_the_completion_for_bash_completes() -> None:
    done = run(_RELAY_COMPLETE="bash_complete", COMP_WORDS="relay sub", COMP_CWORD="1")
    assert done.stdout == "plain,subscribe\n"


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", "bash-completion/completions/relay"),
        ("zsh", "zsh/site-functions/_relay"),
        ("fish", "fish/vendor_completions.d/relay.fish"),
    ],
)
def test_the_shell_accepts_its_completion(shell: str, path: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", str(SHARE / path)], check=True)


def test_groff_formats_the_manual_without_warnings() -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    for path in (SHARE / "man" / "man1").iterdir():
        done = subprocess.run(
            ["groff", "-K", "utf8", "-man", "-Tutf8", "-ww", str(path)], check=True, capture_output=True, text=True
        )
        assert done.stderr == "", path
        assert "Manual" in done.stdout
