"""A Kafka server for tests: the mock broker of librdkafka, in a process of its own, which can be paused.

The mock keeps the newest 5 MB of a partition. Its port changes when it restarts, so it is never restarted.
"""

from __future__ import annotations

import signal
import subprocess
import sys

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
