"""Kafka servers for tests: the mock broker of librdkafka, and a real server.

The mock runs in a process of its own, which can be paused. It keeps the newest 5 MB of a partition. Its port changes
when it restarts, so it is never restarted. The real server (`make kafka`) can be killed and restarted with its data.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtest.rig.cable import Cable
from tests import ROOT
from tests.certificate import make_certificate
from tests.running import free_port

JARS = ROOT / "build" / "kafka" / "lib"
START_S = 120.0
PASSWORD = "a-password-for-kafka"

PROGRAM = """
import sys, time
from confluent_kafka import Producer
mock = Producer({"bootstrap.servers": "x", "test.mock.num.brokers": 1, "log_level": 0})
[broker] = mock.list_topics(timeout=30).brokers.values()
print(f"{broker.host}:{broker.port}", flush=True)
sys.stdin.read()
"""


class KafkaServer:
    """One mock broker."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the mock broker did not start"

    @property
    def url(self) -> str:
        """The address for `--cluster`."""
        return f"kafka://{self.address}/events"

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    def close(self) -> None:
        """End the process."""
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure}{advertised}
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PEM
ssl.keystore.location={folder}/keystore.pem
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT{protocols}
log.dirs={folder}/data
offsets.topic.replication.factor=1
auto.create.topics.enable=false
log.message.timestamp.type=LogAppendTime
"""


def need_kafka() -> None:
    """Skip the test without the jars of Kafka and Java; in CI it fails."""
    if not (JARS.parent / ".installed").exists() or shutil.which("java") is None:
        reason = "Kafka is not installed: `make kafka` fetches it; it needs Java 17"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


class RealKafka:
    """One real server, which keeps its data when it restarts.

    It has a second listener for TLS, where the user `app` logs in with the password `PASSWORD`. Kafka tells its clients
    the address to connect to, so each cable has a listener of its own.

    Args:
        folder: an empty folder for its settings and data.
        cables: the number of cables in front of it.
    """

    def __init__(self, folder: Path, cables: int = 0) -> None:
        self.port, self.secure_port = free_port(), free_port()
        self.certificate = make_certificate(folder, "kafka")
        (folder / "keystore.pem").write_bytes(self.certificate.key.read_bytes() + self.certificate.cert.read_bytes())
        self._folder = folder
        self._settings = folder / "server.properties"
        ports = {"port": self.port, "secure": self.secure_port, "controller": free_port()}
        self.cables = [Cable(free_port()) for _ in range(cables)]
        named = [(f"CABLE{number}", cable) for number, cable in enumerate(self.cables)]
        listeners = {
            "listeners": "".join(f",{name}://127.0.0.1:{cable.target}" for name, cable in named),
            "advertised": "".join(f",{name}://127.0.0.1:{cable.port}" for name, cable in named),
            "protocols": "".join(f",{name}:PLAINTEXT" for name, _ in named),
        }
        self._settings.write_text(PROPERTIES.format(**ports, **listeners, folder=folder))
        identity = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        user = ("--add-scram", f"SCRAM-SHA-512=[name=app,password={PASSWORD}]")
        chosen = f"--cluster-id={identity}"  # the identity may begin with a hyphen
        self._java("kafka.tools.StorageTool", "format", chosen, "-c", str(self._settings), *user).wait(START_S)
        self._process = self._start()

    @property
    def url(self) -> str:
        """The address for `--cluster`."""
        return f"kafka://127.0.0.1:{self.port}/events"

    def _java(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(["java", "-Xmx400m", "-cp", f"{JARS}/*", *arguments], stdout=log, stderr=log)

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._java("kafka.Kafka", str(self._settings))
        deadline_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return process
            assert process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline_s, "Kafka does not start"
            time.sleep(0.1)

    def kill(self) -> None:
        """End the server at once."""
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """Start the server again."""
        self._process = self._start()

    def signal(self, number: int) -> None:
        """Send a signal to the server."""
        self._process.send_signal(number)

    def close(self) -> None:
        """End the server, and close its cables."""
        self._process.send_signal(signal.SIGCONT)
        self.kill()
        for cable in self.cables:
            cable.close()
