"""The checks of the broker of a cluster: reachable, its version, and the settings that relay depends on.

Owns the recommended settings. Never publishes and never creates anything.
"""

from __future__ import annotations

from collections.abc import Mapping

from relay.cluster.broker import BrokerReport
from relay.cluster.broker_factory import make_broker
from relay.config.model import Config
from relay.doctor.finding import Finding, fault, ok, warning
from relay.errors import BrokerError

_EXPECTED: Mapping[str, tuple[tuple[str, ...], str]] = {
    "maxmemory-policy": (("noeviction",), "set it to noeviction; otherwise Redis may evict the log"),
    "appendonly": (("yes",), "set it to yes; otherwise a restart of Redis loses the log"),
    "partitions": (("1",), "relay uses partition 0 only; create a topic with one partition"),
    "cleanup.policy": (("delete",), "set it to delete; compaction removes events"),
    "message.timestamp.type": (("LogAppendTime",), "set it to LogAppendTime, so that all times are the broker's"),
    "storage": (("file",), "use file storage; otherwise a restart of the server loses the log"),
    "discard": (("old",), "set it to old; otherwise a full stream rejects events"),
    "retention": (("limits",), "set it to limits; otherwise messages disappear after the first node has read them"),
}
"""Each setting that relay depends on: the accepted values, and the remedy."""
_FATAL = ("maxmemory-policy", "partitions", "cleanup.policy", "retention")
"""The settings whose wrong value makes the cluster lose or miss events in normal operation."""


async def check_broker(config: Config) -> list[Finding]:
    """Check the broker.

    Args:
        config: the settings of the server.

    Raises:
        ConfigError: a library is missing, or a file cannot be read.
    """
    if not config.cluster:
        return [ok("broker", "not used: cluster is not set")]
    broker, shown = make_broker(config)
    try:
        await broker.connect()
        try:
            report = await broker.inspect()
        except BrokerError as error:
            remedy = "give relay's user the right to read the settings (Redis: +info), or check them by hand"
            return [ok("broker", f"{shown} is reachable"), warning("broker settings", str(error), remedy)]
    except BrokerError as error:
        remedy = "check the address, the password (cluster-password-file), TLS and the firewall"
        return [fault("broker", f"cannot reach {shown}: {error}", remedy)]
    finally:
        await broker.close()
    return [ok("broker", f"{shown} is reachable: {report.version}"), *judge(report)]


def judge(report: BrokerReport) -> list[Finding]:
    """Compare the settings of a broker with the expected ones."""
    findings = []
    for name, value in report.settings.items():
        expected, remedy = _EXPECTED.get(name, ((), ""))
        text = f"{name} is {value}"
        if not expected or value in expected:
            findings.append(ok("broker settings", text))
        else:
            findings.append((fault if name in _FATAL else warning)("broker settings", text, remedy))
    return findings
