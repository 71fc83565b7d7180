from collections.abc import Iterator

import requests


def lines(url: str, headers: dict[str, str]) -> Iterator[str]:
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            yield line.decode()
