"""The pace of the front: work beyond a turn's share waits for a later turn, in order, and none is lost."""

from __future__ import annotations

from collections.abc import Callable

from relay.front.pace import SLICE_S, Pace


class World:
    """A clock that only steps advance, and the functions that the loop calls in its next turn."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.next_turn: list[Callable[[], None]] = []
        self.done: list[str] = []
        self.pace = Pace(self.next_turn.append, lambda: self.now_s)

    def step(self, name: str, seconds: float) -> Callable[[], None]:
        """Make a step with this duration."""

        def step() -> None:
            self.now_s += seconds
            self.done.append(name)

        return step

    def arrive(self, name: str, seconds: float) -> None:
        """Let a request arrive, as a connection does."""
        self.pace.add(self.step(name, seconds))

    def turn(self) -> list[str]:
        """Run the loop's next turn; return the steps that it ran."""
        calls, self.next_turn[:], self.done = list(self.next_turn), [], []
        for call in calls:
            call()
        return self.done


def test_small_requests_are_served_as_they_arrive_and_cost_no_callback() -> None:
    world = World()
    for number in range(10):
        world.arrive(str(number), SLICE_S / 20)
    assert world.done == [str(number) for number in range(10)]
    assert world.next_turn == []


def test_requests_beyond_a_slice_are_served_in_later_turns_in_order() -> None:
    world = World()
    for number in range(6):
        world.arrive(str(number), SLICE_S * 0.6)
    assert world.done == ["0", "1"]
    assert world.turn() == ["2", "3"]
    world.arrive("late", SLICE_S * 0.6)
    assert world.turn() == ["4", "5"]
    assert world.turn() == ["late"]
    assert world.turn() == []


def test_each_turn_serves_at_least_one_request_even_a_long_one() -> None:
    world = World()
    for number in range(3):
        world.arrive(str(number), SLICE_S * 10)
    assert world.done == ["0"]
    assert [world.turn(), world.turn(), world.turn()] == [["1"], ["2"], []]


def test_a_request_that_arrives_while_others_wait_never_overtakes_them() -> None:
    world = World()
    for number in range(4):
        world.arrive(str(number), SLICE_S * 1.5)
    world.turn()
    world.arrive("late", 0.0)
    assert [world.turn(), world.turn()] == [["2"], ["3"]]
    assert world.turn() == ["late"]
