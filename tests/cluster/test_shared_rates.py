"""The publish rates of a cluster at Redis: all nodes take from the same buckets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from relay.cluster import shared_rates as module
from relay.cluster.broker_factory import make_shared_rates
from relay.cluster.shared_rates import SharedRates
from relay.config.model import Config
from relay.errors import RelayError, RequestError
from tests.curl import curl, report, write
from tests.redis_server import RedisServer
from tests.running import TOKEN, Relay, relay

Make = Callable[[float], SharedRates]
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


@pytest.fixture
async def make(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Return a function that makes the rates of another node."""
    for name in ("RECONNECT_MIN_S", "RECONNECT_MAX_S"):
        monkeypatch.setattr(module, name, 0.001)
    nodes: list[SharedRates] = []

    def make(per_s: float) -> SharedRates:
        rates = make_shared_rates(Config(cluster=redis.url, publish_rate=per_s), 10)
        assert rates is not None
        rates.start(asyncio.get_running_loop())
        nodes.append(rates)
        return rates

    yield make
    for node in nodes:
        await node.close()


async def take(rates: SharedRates, count: int, subject: str = "ann") -> float | RelayError:
    """Take events from the rate of a subject, and return the result."""
    result: asyncio.Future[float | RelayError] = asyncio.get_running_loop().create_future()
    rates.take(subject, count, result.set_result)
    return await result


async def test_nodes_share_the_bucket_of_a_subject(make: Make) -> None:
    a, b = make(1.0), make(1.0)
    assert [await take(a, 7), await take(b, 3)] == [0.0, 0.0]
    for node in (a, b):
        assert await take(node, 1) == pytest.approx(1.0, abs=0.5)
        assert await take(node, 5) == pytest.approx(5.0, abs=0.5)
    assert await take(b, 10, "bob") == 0.0


async def test_the_bucket_fills_with_time(make: Make) -> None:
    a, b = make(10_000.0), make(10_000.0)
    assert await take(a, 100_000) == 0.0
    wait_s = await take(b, 1000)
    assert isinstance(wait_s, float)
    assert 0.0 < wait_s <= 0.1
    await asyncio.sleep(wait_s)
    assert await take(b, 1000) == 0.0


async def test_a_request_that_exceeds_the_bucket_leaves_a_debt(make: Make) -> None:
    node = make(1.0)
    assert await take(node, 25) == 0.0
    assert await take(node, 1) == pytest.approx(16.0, abs=0.5)


async def test_requests_of_one_turn_go_out_as_one_call(make: Make, redis: RedisServer) -> None:
    node = make(1.0)
    await take(node, 1, "first")
    before = redis.client.info("stats")["total_commands_processed"]
    results = await asyncio.gather(*(take(node, 4) for _ in range(5)))
    assert results[:2] == [0.0, 0.0]
    assert all(wait_s == pytest.approx(2.0, abs=0.5) for wait_s in results[2:])
    # The script, its commands, and this request: HMGET for each take, HSET and PEXPIRE for two of them, and TIME.
    assert redis.client.info("stats")["total_commands_processed"] - before <= 1 + 1 + 5 + 2 * 2 + 1


async def test_a_cancelled_take_is_not_answered(make: Make) -> None:
    node = make(1.0)
    node.take("ann", 1, lambda _: pytest.fail("answered"))()
    assert await take(node, 1) == 0.0


async def test_redis_receives_no_subject_and_forgets_full_buckets(make: Make, redis: RedisServer) -> None:
    await take(make(10.0), 5, "ann@example.com")
    [key] = redis.client.keys("*")
    assert key.startswith(b"{relay}:rate:")
    assert b"ann" not in key
    assert 0 < redis.client.pttl(key) <= 500


async def test_without_redis_takes_fail_until_it_returns(make: Make, redis: RedisServer) -> None:
    node = make(1000.0)
    assert await take(node, 1) == 0.0
    redis.kill()
    for _ in range(2):
        error = await take(node, 1)
        assert isinstance(error, RequestError)
        assert (error.status, str(error)) == (503, "the broker is unavailable")
    redis.start()
    async with asyncio.timeout(10):
        while await take(node, 1) != 0.0:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    "config",
    [
        Config(cluster="redis://127.0.0.1"),
        Config(publish_rate=1),
        Config(cluster="nats://127.0.0.1/events", publish_rate=1),
        Config(cluster="kafka://127.0.0.1/events", publish_rate=1),
    ],
)
def test_only_redis_counts_for_all_nodes(config: Config) -> None:
    assert make_shared_rates(config, 10) is None


def try_to_publish(node: Relay, events: int) -> tuple[int, dict[str, str]]:
    """Publish events in one request; return the status and the headers."""
    body = b"[" + b",".join([b"{}"] * events) + b"]"
    status, headers, _ = node.request("POST", "/publish?topic=t", body, HEADERS)
    return status, headers


def test_a_publisher_has_one_rate_at_all_nodes_and_their_workers(redis: RedisServer) -> None:
    rate = ("--cluster", redis.url, "--publish-rate", "1", "--retry-min", "1ms", "--retry-max", "2ms")
    with relay(*rate, "--workers", "2") as a, relay(*rate) as b:
        assert try_to_publish(a, 200)[0] == 200  # the rate of 190 s is owed
        for node in (a, a, a, a, b):
            status, headers = try_to_publish(node, 1)
            assert status == 429
            assert 100 < int(headers["retry-after"]) <= 191


def test_workers_have_one_rate() -> None:
    with relay("--publish-rate", "1", "--workers", "2") as node:
        statuses = [try_to_publish(node, 100)[0] for _ in range(6)]
    assert statuses == [200, 429, 429, 429, 429, 429]


def test_uploads_at_two_nodes_share_the_rate(redis: RedisServer) -> None:
    rate = ("--cluster", redis.url, "--publish-rate", "1000", "--retry-min", "1ms", "--retry-max", "2ms")
    with relay(*rate) as a, relay(*rate) as b:
        assert try_to_publish(a, 10_000)[0] == 200
        with curl(b) as process:  # the bucket is empty: each upload waits for its lines
            write(process, "line\n" * 100)
            assert report(process)["published"] == 100
