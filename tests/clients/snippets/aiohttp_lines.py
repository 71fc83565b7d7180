from collections.abc import AsyncIterator

import aiohttp


async def lines(url: str, headers: dict[str, str]) -> AsyncIterator[str]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    async with (
        aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 20) as session,
        session.get(url, headers=headers) as response,
    ):
        response.raise_for_status()
        async for line in response.content:
            yield line.decode().rstrip("\n")
