"""The documentation of the JavaScript client is correct: its snippets have valid types, and the first one runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from tests.js.harness import DIST, MODULES, need_built, need_node
from tests.running import TIMEOUT_S, environment, eventually, relay

CLIENT = ROOT / "clients" / "js"
SNIPPETS = {
    f"{path.stem}-{number}": text
    for path in (ROOT / "docs" / "javascript.md", CLIENT / "README.md")
    for number, text in enumerate(re.findall(r"^```typescript\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL))
}


def test_the_snippets_and_the_example_of_react_have_valid_types(tmp_path: Path) -> None:
    need_built()
    if not (MODULES / "@types" / "react").is_dir():
        pytest.skip("the types of React are not installed: `make test` installs them with npm")
    for name, text in SNIPPETS.items():
        (tmp_path / f"{name}.ts").write_text(text)
    for path in (ROOT / "examples" / "react").glob("*.ts*"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "node_modules").symlink_to(MODULES)
    options = {
        "noEmit": True,
        "strict": True,
        "target": "es2022",
        "module": "es2022",
        "moduleResolution": "bundler",
        "jsx": "react-jsx",
        "lib": ["es2022", "dom", "dom.iterable"],
        "types": [],
        "paths": {"relay-sse": [str(DIST / "index.d.ts")]},
    }
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["*.ts", "*.tsx"]}))
    command = [str(CLIENT / "node_modules" / ".bin" / "tsc"), "--project", str(tmp_path)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_first_snippet_prints_events_and_the_end(tmp_path: Path) -> None:
    need_built()
    need_node()
    with relay("--retry-min", "50ms", "--retry-max", "100ms") as server:
        text = SNIPPETS["javascript-0"].replace("http://127.0.0.1:8080", server.url)
        text = text.replace('"relay-sse"', json.dumps(str(DIST / "index.js"))).replace(', "orders.*"', "")
        (tmp_path / "snippet.mjs").write_text(text)
        [id] = server.publish("one", "news")
        command = ["node", str(tmp_path / "snippet.mjs")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), text=True) as process:
            eventually(lambda: process.poll() is not None or server.stats()["streams"] == 1, "the snippet subscribes")
            server.publish('{"event": "relay.end", "data": "bye"}', "news", "application/json")
            output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, "the program exits when the source is closed"
        lines = output.splitlines()
        assert lines[:2] == ["open", f"{id} news one"]
        assert lines[-1] == "closed 204 all topics have ended"
