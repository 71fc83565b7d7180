"""An application that publishes its orders: `uvicorn app:app --port 8000`. Needs fastapi, uvicorn and relay.

The browser posts to this application and follows the topic at relay, so the application holds no open streams.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from relay import Event, Publisher, RelayError

TARGET = f"unix:{os.environ.get('RELAY_SOCKET', 'relay.sock')}"


class Order(BaseModel):
    """The body of a request."""

    region: str
    amount: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one connection to relay for all requests."""
    async with Publisher(TARGET) as publisher:
        app.state.publisher = publisher
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def create(order: Order) -> dict[str, str]:
    """Create an order and publish it; relay has acknowledged the event before the response is sent."""
    event = Event(topic=f"orders.{order.region}", event="created", data=order.model_dump_json())
    try:
        return {"event": await app.state.publisher.publish(event)}
    except RelayError as error:
        raise HTTPException(503, f"the order was not published: {error}") from None
