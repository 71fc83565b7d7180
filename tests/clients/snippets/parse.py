from collections.abc import Iterable, Iterator


def events(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the events of an event stream: their fields by name, without `event` if they have no type."""
    event: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if "data" in event:
                yield event
            event = {}
        elif name == "data" and "data" in event:
            event["data"] += "\n" + value
        elif name:
            event[name] = value
