"""The epochs of a log in a broker without scripts: a second log of records that replace one epoch by another.

Theory of operation. Each record names the epoch that it replaces. A record whose known epoch is not the current one has
no effect, nor has a malformed record. All nodes read the records in the same order, so the epoch is replaced once, even
if several nodes ask.

Owns the format of a record, and the current epoch. Never connects.
"""

from __future__ import annotations

import json
import logging
import re

from relay.errors import BrokerError

_EPOCH = re.compile(r"[0-9a-f]{1,64}")

_logger = logging.getLogger("relay.cluster")


def encode_record(known: str, epoch: str) -> bytes:
    """Return a record that replaces the epoch `known`; `known` is empty in the first record."""
    return json.dumps({"known": known, "epoch": epoch}).encode()


class Epochs:
    """The epochs of one log."""

    def __init__(self) -> None:
        self.current = ""

    def known(self) -> str:
        """Return the current epoch.

        Raises:
            BrokerError: the follower has not read it yet. Events would receive ids without an epoch.
        """
        if not self.current:
            raise BrokerError("the follower has not read the epoch yet")
        return self.current

    def take(self, record: bytes) -> bool:
        """Apply the next record; return whether it replaced the epoch."""
        try:
            fields = json.loads(record)
            known, epoch = str(fields["known"]), str(fields["epoch"])
        except (ValueError, TypeError, KeyError, RecursionError):
            _logger.warning("cluster: a record of an epoch is malformed and has no effect")
            return False
        if not _EPOCH.fullmatch(epoch) or (self.current and known != self.current):
            return False
        self.current = epoch
        return True
