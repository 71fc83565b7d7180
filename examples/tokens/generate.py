"""Stream the tokens of a language model to many viewers: `python generate.py answer-1 'What is a relay?'`.

The model runs once. Each viewer follows the topic `answers.<name>` with `since=earliest`. A viewer who connects late or
reconnects therefore receives the whole answer. `relay.end` is the last event: the streams end, and no client
reconnects. The model here is a placeholder; replace `generate` with the streaming call of your model.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator

from relay import Event, Publisher

TARGET = f"unix:{os.environ.get('RELAY_SOCKET', 'relay.sock')}"


async def generate(prompt: str) -> AsyncIterator[str]:
    """Yield the tokens of an answer."""
    for token in f"You asked: {prompt} Here is the answer, token by token.".split(" "):
        await asyncio.sleep(0.01)
        yield token + " "


async def main(name: str, prompt: str) -> None:
    """Publish each token when it arrives."""
    topic = f"answers.{name}"
    async with Publisher(TARGET) as publisher:
        async for token in generate(prompt):
            await publisher.publish(Event(topic=topic, data=json.dumps(token)))
        await publisher.publish(Event(topic=topic, event="relay.end", data="done"))


asyncio.run(main(*sys.argv[1:3]))
