"""`make h2spec`: run h2spec against relay, without TLS and with it, in its strict mode.

The exit status is 1 if a case fails that `EXPLAINED` does not name, or if such a case passes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tests.certificate import make_certificate
from tests.running import Relay

EXPLAINED = {
    "plain": {"Sends invalid connection preface"},  # docs/architecture/http2.md: the bytes may be a request of HTTP/1.1
    "TLS": set[str](),
}


def failures(h2spec: str, port: int, folder: Path, *flags: str) -> set[str]:
    """Run all cases, and return the names of those that fail."""
    report = folder / f"{port}.xml"
    command = [h2spec, "--strict", "-h", "127.0.0.1", "-p", str(port), "-o", "5", "-j", str(report), *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    cases = ElementTree.parse(report).getroot().iter("testcase")
    found = {case.get("classname", ""): case for case in cases}
    assert len(found) > 100, "h2spec ran too few cases"
    return {name for name, case in found.items() if case.find("failure") is not None or case.find("error") is not None}


def main() -> int:
    """Run h2spec, whose path is the argument."""
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate = make_certificate(folder / "certificate", "h2spec")
        for kind, flags, options in (("plain", (), ()), ("TLS", certificate.flags, ("-t", "-k"))):
            server = Relay(*flags)
            try:
                failed = failures(sys.argv[1], server.port, folder, *options)
                records = [record for record in server.log if record.get("level") == "ERROR"]
            finally:
                server.stop()
            unexpected = failed ^ EXPLAINED[kind]
            print(f"{kind}: {len(failed)} failed, {len(unexpected)} not as explained {sorted(unexpected)}; {records}")
            wrong += len(unexpected) + len(records)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
