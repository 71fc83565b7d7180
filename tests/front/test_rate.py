"""Token buckets: they allow bursts, limit averages, and report the wait to a rejected client."""

from __future__ import annotations

from relay.front.rate import BUCKETS_MAX, BURST_S, Rates


def test_a_burst_of_some_seconds_passes_and_then_the_rate_applies() -> None:
    rates = Rates(2)
    assert [rates.take("a", 1, 0.0) for _ in range(2 * BURST_S)] == [0.0] * 2 * BURST_S
    assert rates.take("a", 1, 0.0) == 0.5
    assert rates.take("a", 1, 0.25) == 0.25
    assert rates.take("a", 1, 0.5) == 0.0
    assert rates.take("a", 1, 0.5) == 0.5


def test_each_key_has_its_own_bucket() -> None:
    rates = Rates(1)
    assert rates.take("a", BURST_S, 0.0) == 0.0
    assert rates.take("a", 1, 0.0) > 0
    assert rates.take("b", 1, 0.0) == 0.0


def test_a_request_larger_than_a_full_bucket_passes_and_leaves_a_debt() -> None:
    rates = Rates(1)
    assert rates.take("a", 3 * BURST_S, 0.0) == 0.0
    assert rates.take("a", 1, 0.0) == 2 * BURST_S + 1
    assert rates.take("a", 1, 2 * BURST_S + 1) == 0.0


def test_a_rate_of_zero_sets_no_limit_and_keeps_nothing() -> None:
    rates = Rates(0)
    assert not any(rates.take("a", 1e9, 0.0) for _ in range(10))


def test_the_number_of_buckets_is_bounded() -> None:
    rates = Rates(1)
    for name in range(BUCKETS_MAX + 1):
        rates.take(str(name), BURST_S, 0.0)
    assert rates.take("0", 1, 0.0) == 0.0
    assert rates.take(str(BUCKETS_MAX), 1, 0.0) > 0.0
