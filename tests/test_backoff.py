"""`relay.backoff`: delays double up to a limit, are multiplied by the jitter, and restart after a reset."""

from __future__ import annotations

from relay.backoff import Backoff, half_jitter


def test_waits_double_up_to_the_limit() -> None:
    backoff = Backoff(0.1, 5.0)
    assert [backoff.next_s() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]


def test_a_long_outage_stays_at_the_limit() -> None:
    backoff = Backoff(1.0, 30.0)
    assert [backoff.next_s() for _ in range(2000)][-1] == 30.0


def test_a_reset_starts_again_from_the_first_wait() -> None:
    backoff = Backoff(1.0, 30.0)
    assert [backoff.next_s(), backoff.next_s()] == [1.0, 2.0]
    backoff.reset()
    assert backoff.next_s() == 1.0


def test_jitter_multiplies_each_wait() -> None:
    factors = iter([0.0, 1.0, 0.25])
    backoff = Backoff(1.0, 30.0, lambda: next(factors))
    assert [backoff.next_s() for _ in range(3)] == [0.0, 2.0, 1.0]


def test_half_jitter_keeps_at_least_half_of_the_wait() -> None:
    assert all(0.5 <= half_jitter() <= 1.0 for _ in range(1000))
