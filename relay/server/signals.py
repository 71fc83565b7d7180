"""The requests of operators and of the service manager: stop, reload, log level, upgrade, readiness and the watchdog.

Owns the signal handlers, the watchdog's timer and the task of an upgrade. Never drains or closes the server: it sets
the server's `stop` event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time

from relay.errors import RelayError
from relay.process import startup
from relay.server.parts import Parts
from relay.telemetry import logs
from relay.upgrade.give import Possessions, upgrade

EXIT_AT_ONCE = 130

_logger = logging.getLogger("relay.server")


class Signals:
    """Handles the signals of one server and reports its state to the service manager.

    Args:
        parts: the open parts of the server.
        is_process_1: whether this process is process 1 of a container.
    """

    def __init__(self, parts: Parts, is_process_1: bool) -> None:
        self._parts = parts
        self._is_process_1 = is_process_1
        self._upgrading: asyncio.Task[None] | None = None
        self._to_pass_on: set[int] = set()  # signals that a new process must get from this one
        self._pinging: asyncio.TimerHandle | None = None

    def handle(self) -> None:
        """Install the handlers; the signals of `relay.process.startup` remain held back."""
        loop = self._parts.loop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        loop.add_signal_handler(signal.SIGUSR1, self._on_log_level)
        loop.add_signal_handler(signal.SIGUSR2, self._on_upgrade)

    def tell_ready(self) -> None:
        """Report readiness, and start to feed the watchdog."""
        self._parts.service.tell("READY=1", self._parts.status)
        if self._parts.service.ping_s is not None:
            self._ping(self._parts.service.ping_s)

    def end(self) -> None:
        """Stop the server; an upgrade that has not handed anything over is cancelled."""
        self._parts.stop.set()
        if self._upgrading is not None:
            self._upgrading.cancel()

    async def upgrade_ended(self) -> None:
        """Wait until a cancelled upgrade has ended."""
        if self._upgrading is not None:
            await asyncio.wait([self._upgrading])

    def close(self) -> None:
        """Hold signals back again, because the loop's handlers end with the loop, and stop the watchdog's timer."""
        startup.hold_signals()
        if self._pinging is not None:
            self._pinging.cancel()

    def _on_stop(self) -> None:
        if self._parts.stop.is_set():
            _logger.warning("second signal: exiting at once")
            logging.shutdown()
            os._exit(EXIT_AT_ONCE)
        self.end()

    def _on_reload(self) -> None:
        parts = self._parts
        if self._upgrading is not None:
            self._to_pass_on.add(signal.SIGHUP)  # The new process may have read its credentials already.
        parts.service.reloading()
        parts.credentials.reload()
        if parts.tls is not None:
            parts.tls.reload()
        if parts.membership.workers is not None:
            parts.membership.workers.reload()
        parts.service.tell("READY=1", parts.status)

    def _on_log_level(self) -> None:
        """Switch to the level `debug`, or back to that of the settings. A worker has the level of its hub."""
        if self._parts.is_edge:
            return
        configured = self._parts.config.log_level
        usual = "info" if configured == "debug" else configured
        level = usual if logs.current_level() == "debug" else "debug"
        logs.set_level("debug")  # The next line is logged at every level.
        _logger.warning("SIGUSR1: the log level is now %s", level)
        logs.set_level(level)

    def _on_upgrade(self) -> None:
        parts = self._parts
        if self._is_process_1:
            _logger.error("the upgrade failed: a container ends with its process 1, which is this one; restart it")
        elif parts.is_linked:
            _logger.error(
                "the upgrade failed: workers, a cluster and sources cannot be handed over; restart, and clients resume"
            )
        elif parts.tls is not None:
            _logger.error("the upgrade failed: streams of TLS cannot be handed over; restart, and clients resume")
        elif self._upgrading is None and parts.sources is not None and not parts.stop.is_set():
            self._to_pass_on.clear()
            [listeners] = parts.listeners
            given = Possessions(parts.hub, parts.front, parts.own_token, listeners, parts.sources, parts.journal)
            self._upgrading = parts.loop.create_task(self._upgrade(given))

    async def _upgrade(self, given: Possessions) -> None:
        parts = self._parts
        try:
            await upgrade(given, parts.service, parts.config.upgrade_timeout_s, time.monotonic, self._to_pass_on)
        except RelayError as error:
            _logger.error("the upgrade failed, this process goes on: %s", error)
        except Exception:
            _logger.exception("the upgrade failed, this process goes on")
        parts.service.tell(f"MAINPID={os.getpid()}", "READY=1", parts.status)
        self._upgrading = None

    def _ping(self, interval_s: float) -> None:
        self._pinging = self._parts.loop.call_later(interval_s, self._ping, interval_s)
        self._parts.service.tell("WATCHDOG=1", self._parts.status)
