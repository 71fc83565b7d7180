"""A real MQTT broker for tests: Mosquitto. It keeps its sessions in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.certificate import Certificate
from tests.running import TIMEOUT_S, free_port

PASSWORD = "a-password-for-mosquitto"


def program() -> str | None:
    """Return the path of Mosquitto. Debian installs it in a folder that is not on every path."""
    return shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")


def need_mosquitto() -> str:
    """Return the path of Mosquitto. Without it, skip the test; in CI it fails."""
    path = program()
    if path is None:
        reason = "mosquitto is not installed: `make brokers` installs it"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


class MosquittoServer:
    """One server.

    Args:
        folder: the folder of its settings.
        certificate: if set, the server uses TLS with this certificate, and only the user `app` may connect.
    """

    def __init__(self, folder: Path, certificate: Certificate | None = None) -> None:
        self._program = need_mosquitto()
        self.port = free_port()
        self._settings = folder / "mosquitto.conf"
        access = "allow_anonymous true"
        if certificate is not None:
            users = folder / "users"
            subprocess.run(["mosquitto_passwd", "-b", "-c", str(users), "app", PASSWORD], check=True)
            files = f"certfile {certificate.cert}\nkeyfile {certificate.key}\npassword_file {users}"
            access = f"allow_anonymous false\n{files}"
        # Under root, Mosquitto would change to a user that cannot read pytest's folders.
        self._settings.write_text(
            f"user root\nmax_queued_messages 0\nlistener {self.port} 127.0.0.1\n{access}\n"
        )
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it accepts connections."""
        command = [self._program, "-c", str(self._settings)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < deadline_s, "mosquitto does not accept connections"
            time.sleep(0.01)

    def publish(self, messages: Iterable[tuple[str, str]]) -> None:
        """Publish topics and payloads with QoS 1. The user property `number` of each message is its payload."""
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        for topic, payload in messages:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.UserProperty = ("number", payload)
            client.publish(topic, payload, 1, properties=properties).wait_for_publish(TIMEOUT_S)
        client.disconnect()
        client.loop_stop()

    def close(self) -> None:
        """End the server. Its sessions are lost."""
        self._process.kill()
        self._process.wait(TIMEOUT_S)
