from collections.abc import Iterator
from urllib.request import Request, urlopen


def lines(url: str, headers: dict[str, str]) -> Iterator[str]:
    with urlopen(Request(url, headers=headers), timeout=60) as response:
        for line in response:
            yield line.decode().rstrip("\n")
