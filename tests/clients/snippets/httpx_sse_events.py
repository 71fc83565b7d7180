from collections.abc import Iterator

import httpx
import httpx_sse


def events(url: str, headers: dict[str, str]) -> Iterator[httpx_sse.ServerSentEvent]:
    with (
        httpx.Client(http2=True, timeout=60) as client,
        httpx_sse.connect_sse(client, "GET", url, headers=headers) as source,
    ):
        source.response.raise_for_status()
        for event in source.iter_sse():
            if event.retry is None:  # a block of only `retry` and `id` is not an event
                yield event
