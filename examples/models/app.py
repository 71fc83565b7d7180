"""Chat with a language model whose answers survive a reload: `uvicorn app:app --port 8000`.

Needs fastapi, uvicorn and relay with the extra `client`. Start relay first:

    relay serve --unix relay.sock --publish-token secret --cors-origin http://127.0.0.1:8000

Each answer is one topic. The application publishes the tokens as the model generates them, whether somebody watches or
not. Viewers read the topic at relay from its first event. They may reload, or continue on another device.

The stop button sends a signal to relay, which passes it to the connection that feeds the topic. With several processes
of this application, any of them may send the signal, and the process that runs the model receives it.

The model here is a placeholder; replace `generate` with the streaming call of your model.
"""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from relay import Event, Publisher, RelayError

RELAY_URL = os.environ.get("RELAY_URL", "http://127.0.0.1:8080")
RELAY_TOKEN = os.environ.get("RELAY_TOKEN", "secret")
TARGET = f"unix:{os.environ.get('RELAY_SOCKET', 'relay.sock')}"
TOKEN_S = float(os.environ.get("TOKEN_S", "0.02"))
PAGE = (Path(__file__).parent / "page.html").read_text().replace("RELAY_URL", json.dumps(RELAY_URL))


class Question(BaseModel):
    """The body of a request for an answer."""

    prompt: str


class Answers:
    """The answers that this process generates now.

    Args:
        publisher: the connection to relay.
    """

    def __init__(self, publisher: Publisher) -> None:
        self.publisher = publisher
        self.running: dict[str, asyncio.Task[None]] = {}

    def start(self, topic: str, prompt: str) -> None:
        """Generate an answer in the background. The request of the browser does not wait for it."""
        task = self.running[topic] = asyncio.create_task(self._answer(topic, prompt))
        task.add_done_callback(lambda _: self.running.pop(topic))

    def on_signal(self, topic: str, value: Any) -> None:
        """Stop an answer; relay calls this for the topics that this process feeds."""
        if value == "stop" and topic in self.running:
            self.running[topic].cancel()

    async def _answer(self, topic: str, prompt: str) -> None:
        """Publish each token, and then the end of the topic."""
        how = "done"
        try:
            async for token in generate(prompt):
                await self.publisher.publish(Event(topic=topic, data=json.dumps(token)))
        except asyncio.CancelledError:
            how = "stopped"
        await self.publisher.publish(Event(topic=topic, event="relay.end", data=how))


async def generate(prompt: str) -> AsyncIterator[str]:
    """Yield the tokens of an answer."""
    sentence = f"You asked: {prompt} A relay sends each token once and keeps it, so that a late reader misses nothing. "
    for word in (sentence * 20).split():
        await asyncio.sleep(TOKEN_S)
        yield word + " "


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one connection to relay for all answers."""
    publisher = Publisher(TARGET, on_signal=lambda topic, value: app.state.answers.on_signal(topic, value))
    async with publisher, httpx.AsyncClient(base_url=RELAY_URL) as app.state.http:
        app.state.answers = Answers(publisher)
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/")
async def page() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(PAGE)


@app.post("/answers", status_code=201)
async def ask(question: Question) -> dict[str, str]:
    """Start an answer and return its topic, which is also the secret that permits reading it."""
    topic = f"answers.{secrets.token_urlsafe(16)}"
    app.state.answers.start(topic, question.prompt)
    return {"topic": topic}


@app.post("/answers/{topic}/stop", status_code=202)
async def stop(topic: str) -> dict[str, str]:
    """Send a signal to the process that generates the answer."""
    headers = {"Authorization": f"Bearer {RELAY_TOKEN}", "Content-Type": "text/plain"}
    try:
        response = await app.state.http.post(f"/topics/{topic}/signal", content="stop", headers=headers)
        response.raise_for_status()
    except (httpx.HTTPError, RelayError) as error:
        raise HTTPException(502, f"the signal was not sent: {error}") from None
    return {"topic": topic}
