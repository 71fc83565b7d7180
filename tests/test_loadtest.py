"""The load test judges: it passes on a relay that loses nothing, and fails on a planted gap."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("planted", "code"), [("", 0), ("1", 1)])
def test_the_exit_code_says_whether_every_stream_saw_every_event(planted: str, code: int) -> None:
    command = [sys.executable, "-m", "loadtest", "--users", "5", "--ramp", "5", "--rate", "50", "--seconds", "4"]
    environment = {**os.environ, "RELAY_LOAD_PLANT_GAP": planted}
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert done.returncode == code, done.stderr.decode()
    assert b"events published" in done.stdout
