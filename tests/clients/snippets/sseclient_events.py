from collections.abc import Iterator

import requests
import sseclient


def events(url: str, headers: dict[str, str]) -> Iterator[sseclient.Event]:
    with requests.get(url, headers=headers, stream=True, timeout=60) as response:
        response.raise_for_status()
        yield from sseclient.SSEClient(iter(response)).events()
