from collections.abc import Iterator

import httpx


def lines(url: str, headers: dict[str, str]) -> Iterator[str]:
    with httpx.Client(http2=True, timeout=60) as client, client.stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        rest = b""
        for data in response.iter_bytes():
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield line.decode()
