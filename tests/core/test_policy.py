"""The time at which a policy acts, and the choice of a stream's policy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.config.model import Config
from relay.core.policy import Lag, Limits, Policy, Rule, Rules

OFF = Limits()
LATE = 1e9


@pytest.mark.parametrize(
    ("limits", "lag", "passed"),
    [
        (OFF, Lag(10**9, 10**12, LATE), False),
        (OFF, Lag(0, 0, 0.0), False),
        (Limits(events=10), Lag(10, 10**9, LATE), False),
        (Limits(events=10), Lag(11, 0, 0.0), True),
        (Limits(events=1), Lag(1, 10**9, LATE), False),
        (Limits(events=1), Lag(2, 0, 0.0), True),
        (Limits(bytes=100), Lag(9, 100, LATE), False),
        (Limits(bytes=100), Lag(9, 101, 0.0), True),
        (Limits(age_s=2.0), Lag(9, 10**9, 2.0), False),
        (Limits(age_s=2.0), Lag(9, 0, 2.001), True),
        (Limits(10, 100, 2.0), Lag(10, 100, 2.0), False),
        (Limits(10, 100, 2.0), Lag(11, 100, 2.0), True),
        (Limits(10, 100, 2.0), Lag(10, 101, 2.0), True),
        (Limits(10, 100, 2.0), Lag(10, 100, 2.1), True),
        (Limits(10, 100, 2.0), Lag(0, 0, 0.0), False),
    ],
)
def test_only_a_greater_lag_exceeds_a_limit_and_zero_means_no_limit(limits: Limits, lag: Lag, passed: bool) -> None:
    assert limits.passed(lag) is passed


@pytest.mark.parametrize("limits", [Limits(1), Limits(0, 1), Limits(0, 0, 0.001), Limits(1, 1, 0.001)])
@pytest.mark.parametrize("events", [0, 1])
def test_a_single_event_never_exceeds_a_limit(limits: Limits, events: int) -> None:
    lag = Lag(events, 10**9, LATE)
    assert not limits.passed(lag)
    rule = Rule(Policy.DISCONNECT, limits, limits, 0.0)
    assert rule.fits(lag)
    assert not rule.broken(lag, None, LATE)
    assert limits.passed(lag._replace(events=2))


def test_a_hard_limit_acts_immediately() -> None:
    rule = Rule(Policy.DROP_OLDEST, Limits(events=10), OFF, 10.0)
    assert rule.broken(Lag(11, 0, 0.0), None, 0.0)
    assert not rule.broken(Lag(10, 0, 0.0), None, 0.0)


@pytest.mark.parametrize(
    ("since_s", "now_s", "broken"),
    [(None, LATE, False), (100.0, 100.0, False), (100.0, 109.999, False), (100.0, 110.0, True), (100.0, LATE, True)],
)
def test_a_soft_limit_acts_after_its_time(since_s: float | None, now_s: float, broken: bool) -> None:
    rule = Rule(Policy.DROP_OLDEST, Limits(events=1000), Limits(events=10), 10.0)
    assert rule.broken(Lag(11, 0, 0.0), since_s, now_s) is broken


def test_a_soft_limit_with_a_time_of_zero_acts_immediately() -> None:
    rule = Rule(Policy.DROP_OLDEST, OFF, Limits(events=10), 0.0)
    assert rule.broken(Lag(11, 0, 0.0), 5.0, 5.0)


@pytest.mark.parametrize(
    ("lag", "fits"),
    [(Lag(5, 0, 0.0), True), (Lag(6, 0, 0.0), False), (Lag(5, 101, 0.0), False), (Lag(1, 101, LATE), True)],
)
def test_a_lag_fits_if_it_is_within_both_limits(lag: Lag, fits: bool) -> None:
    assert Rule(Policy.DROP_OLDEST, Limits(bytes=100), Limits(events=5), 10.0).fits(lag) is fits


# The choice of a policy


CONFIG = Config(
    policy="conflate",
    policy_for=("orders.eu=block", "orders.*=disconnect", "logs.**=drop-newest", "a=b=drop-oldest"),
    lag_events=1,
    lag_bytes=2,
    lag_s=3.0,
    lag_soft_events=4,
    lag_soft_bytes=5,
    lag_soft_s=6.0,
    lag_soft_for_s=7.0,
)


def test_a_rule_has_the_limits_of_the_settings() -> None:
    rule = Rules(CONFIG).choose(["x"])
    assert rule == Rule(Policy.CONFLATE, Limits(1, 2, 3.0), Limits(4, 5, 6.0), 7.0)


@pytest.mark.parametrize(
    ("terms", "policy"),
    [
        (["x"], Policy.CONFLATE),
        (["orders"], Policy.CONFLATE),
        (["orders.eu"], Policy.BLOCK),
        (["orders.us"], Policy.DISCONNECT),
        (["orders.us.new"], Policy.CONFLATE),
        (["logs.a.b.c"], Policy.DROP_NEWEST),
        (["a=b"], Policy.DROP_OLDEST),
        (["x", "logs.a", "orders.us"], Policy.DISCONNECT),
        (["logs.a", "orders.us", "orders.eu"], Policy.BLOCK),
        (["orders.*"], Policy.DISCONNECT),
        (["logs.**"], Policy.DROP_NEWEST),
        (["logs.*"], Policy.DROP_NEWEST),
        (["**"], Policy.CONFLATE),
        ([], Policy.CONFLATE),
    ],
)
def test_the_first_configured_pattern_that_covers_a_term_is_used(terms: list[str], policy: Policy) -> None:
    assert Rules(CONFIG).choose(terms).policy is policy


def test_the_order_of_the_patterns_decides() -> None:
    config = replace(CONFIG, policy_for=("orders.*=disconnect", "orders.eu=block"))
    assert Rules(config).choose(["orders.eu"]).policy is Policy.DISCONNECT


@pytest.mark.parametrize("policy", list(Policy))
def test_a_requested_policy_has_priority(policy: Policy) -> None:
    rule = Rules(CONFIG).choose(["orders.eu"], str(policy))
    assert rule.policy is policy
    assert rule.hard == Limits(1, 2, 3.0)


@pytest.mark.parametrize(
    ("terms", "requested", "events"),
    [
        (["orders.eu"], "conflate", 10),  # as without a request
        (["orders.eu"], "block", 20),  # a later pattern, the first of this policy
        (["orders.us"], "block", 1),  # no pattern of this policy matches
        (["orders.eu"], "disconnect", 1),
        (["x"], "conflate", 1),
        (["x", "orders.eu"], "block", 20),
    ],
)
def test_a_requested_policy_has_the_limits_of_its_pattern(terms: list[str], requested: str, events: int) -> None:
    policy_for = ("orders.*=conflate lag-events=10", "orders.eu=block lag-events=20")
    rule = Rules(Config(lag_events=1, policy_for=policy_for)).choose(terms, requested)
    assert (rule.policy, rule.hard.events) == (Policy(requested), events)


def test_a_pattern_does_not_apply_to_broader_terms() -> None:
    rules = Rules(Config(policy_for=("*=block", "orders.*=disconnect")))
    assert rules.choose(["**"]).policy is Policy.DROP_OLDEST
    assert rules.choose(["orders.**"]).policy is Policy.DROP_OLDEST
    assert rules.choose(["*"]).policy is Policy.BLOCK


def test_limits_of_a_pattern_override_the_general_limits() -> None:
    own = "orders.*=disconnect lag-events=10 lag=5s lag-soft-bytes=1KiB lag-soft-for=2s"
    rules = Rules(Config(policy_for=(own,), lag_bytes=4096, lag_events=3, lag_soft_for_s=7.0))
    special = Rule(Policy.DISCONNECT, Limits(10, 4096, 5.0), Limits(0, 1024, 0.0), 2.0)
    assert rules.choose(["orders.eu"]) == special
    assert rules.choose(["x"]) == Rule(Policy.DROP_OLDEST, Limits(3, 4096, 0.0), OFF, 7.0)
    assert rules.choose(["orders.eu"], "conflate").hard == Limits(3, 4096, 0.0)


def test_terms_can_be_an_iterator() -> None:
    assert Rules(CONFIG).choose(iter(["x", "logs.a"])).policy is Policy.DROP_NEWEST


def test_streams_of_the_same_policy_and_limits_have_equal_rules() -> None:
    """Equal rules let streams share a subscription."""
    rules = Rules(CONFIG)
    assert rules.choose(["x"]) == rules.choose(["y"], "conflate")
    assert hash(rules.choose(["x"])) == hash(rules.choose(["y"], "conflate"))


@pytest.mark.parametrize("policy", list(Policy))
def test_every_policy_can_be_configured(policy: Policy) -> None:
    assert Rules(Config(policy=str(policy))).choose(["x"]).policy is policy


def test_a_pattern_can_have_its_own_limits() -> None:
    rules = Rules(Config(lag_bytes=1000, policy_for=("orders.*=conflate lag-events=10 lag=5s",)))
    rule = rules.choose(("orders.eu",))
    assert (rule.policy, rule.hard) == (Policy.CONFLATE, Limits(events=10, bytes=1000, age_s=5.0))
    assert rules.choose(("b",)).hard == Limits(bytes=1000)
