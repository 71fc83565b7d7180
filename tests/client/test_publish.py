"""`relay.client.publish`: a publisher receives the id of each event, or the error that rejected it.

Also tests `relay.client.target`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relay.client import Publisher, publish, subscribe
from relay.errors import EventError, LostError, RelayError, RequestError
from relay.event import Event
from tests.scripted_http import answer, scripted

JSON = "Content-Type: application/json\r\n"
Answer = Callable[[dict[str, Any], int], dict[str, Any] | bytes | None]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "*")


@contextlib.asynccontextmanager
async def feeder_socket(path: Path, reply: Answer) -> AsyncIterator[list[dict[str, Any]]]:
    """Read lines and answer each with `reply`; None closes the connection."""
    lines: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        while line := await reader.readline():
            lines.append(json.loads(line))
            number += 1
            said = reply(lines[-1], number)
            if said is None:
                break
            writer.write(said if isinstance(said, bytes) else json.dumps(said).encode() + b"\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield lines


def accept(line: dict[str, Any], number: int) -> dict[str, Any]:
    return {"ack": line["ack"], "id": f"e-{number}"}


async def test_events_are_sent_as_lines_and_ids_are_returned(tmp_path: Path) -> None:
    path = tmp_path / "s"
    events = [Event(data={"a": 1}, topic="x", key="k"), Event(data="", event="e"), Event(id="own"), Event()]
    async with feeder_socket(path, accept) as lines:
        assert await publish(str(path), events) == ["e-1", "e-2", "e-3", "e-4"]
        assert await publish(f"unix:{path}", Event(data="one")) == ["e-1"]
        assert await publish(f"unix://{path}", []) == []
    assert [{name: value for name, value in line.items() if name != "ack"} for line in lines[:4]] == [
        {"data": {"a": 1}, "topic": "x", "key": "k"},
        {"data": "", "event": "e"},
        {"id": "own"},
        {},
    ]


@pytest.mark.parametrize("named", ["ack", "line"])
async def test_a_rejected_event_is_an_error_and_the_rest_is_published(tmp_path: Path, named: str) -> None:
    def reply(line: dict[str, Any], number: int) -> dict[str, Any]:
        if line["data"] == "bad":
            return {"error": "topic: has an empty level", "line": number} | (
                {"ack": line["ack"]} if named == "ack" else {}
            )
        return accept(line, number)

    async with feeder_socket(tmp_path / "s", reply), Publisher(str(tmp_path / "s")) as publisher:
        sent = [await publisher.send(Event(data=data)) for data in ("a", "bad", "c")]
        await publisher.flush()
        assert [sent[0].result(), sent[2].result()] == ["e-1", "e-3"]
        with pytest.raises(EventError, match="has an empty level") as raised:
            sent[1].result()
        assert raised.value.field == "topic"
        with pytest.raises(EventError):
            await publish(str(tmp_path / "s"), [Event(data="a"), Event(data="bad")])


async def test_the_number_of_events_in_flight_is_limited(tmp_path: Path) -> None:
    waiting: list[dict[str, Any]] = []
    writers: list[asyncio.StreamWriter] = []
    arrived = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while line := await reader.readline():
            waiting.append(json.loads(line))
            arrived.release()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    async with server, Publisher(str(tmp_path / "s"), in_flight_max=2) as publisher:
        tasks = [asyncio.create_task(publisher.publish(Event(data=number))) for number in range(3)]
        for _ in range(2):
            await arrived.acquire()
        assert len(waiting) == 2
        for number in range(3):
            writers[0].write(json.dumps(accept(waiting[number], number)).encode() + b"\n")
            assert await tasks[number] == f"e-{number}"
            if number == 0:
                await arrived.acquire()


async def test_without_resending_a_lost_connection_fails_the_waiting_events(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    async with feeder_socket(tmp_path / "s", lambda line, number: None) as lines:
        with pytest.raises(LostError, match="closed the connection"):
            await publish(path, [Event(data=number) for number in range(10)])
        publisher = await Publisher(path, resend_s_max=0).__aenter__()
        for number in range(2):
            with pytest.raises(LostError, match="closed the connection"):
                await publisher.publish(Event(data=number))
        with pytest.raises(LostError, match="closed the connection"):
            await publisher.__aexit__(None, None, None)
    assert all("dedup" not in line for line in lines)


async def test_unacknowledged_events_are_sent_again_in_order_with_the_same_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server closes each connection after two acknowledgements."""
    path = tmp_path / "s"
    events = [*(Event(data=data) for data in "abcd"), Event(data="e", dedup="own")]
    async with feeder_socket(path, lambda line, number: accept(line, number) if number <= 2 else None) as lines:
        async with Publisher(str(path)) as publisher:
            sent = [await publisher.send(event) for event in events]
        assert [future.result() for future in sent] == ["e-1", "e-2"] * 2 + ["e-1"]
    keys: dict[str, set[str]] = {line["data"]: set() for line in lines}
    for line in lines:
        keys[line["data"]].add(line["dedup"])
    assert list(keys) == ["a", "b", "c", "d", "e"]
    assert all(len(each) == 1 for each in keys.values())
    assert len({key for each in keys.values() for key in each}) == 5
    assert keys["e"] == {"own"}
    assert "closed the connection; sending 3 events again in" in caplog.text


async def test_after_the_time_limit_the_events_fail_and_later_events_are_published(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with (
        feeder_socket(path, lambda line, number: accept(line, 1) if line["data"] == "c" else None),
        Publisher(str(path), resend_s_max=0.2) as publisher,
    ):
        sent = [await publisher.send(Event(data=data)) for data in "ab"]
        with pytest.raises(LostError, match="closed the connection"):
            await publisher.flush()
        assert [type(future.exception()) for future in sent] == [LostError] * 2
        assert await publisher.publish(Event(data="c")) == "e-1"


async def test_a_closed_publisher_rejects_events(tmp_path: Path) -> None:
    async with feeder_socket(tmp_path / "s", accept):
        async with Publisher(str(tmp_path / "s"), in_flight_max=1) as publisher:
            pass
        with pytest.raises(RelayError, match="the publisher was closed"):
            await publisher.send(Event(data="a"))


@pytest.mark.parametrize(
    "said", [b"hello\n", b"[]\n", b'{"ack": 1}\n', b'{"ack": []}\n', b'{"a":' + b"[" * 4096 + b"\n"]
)
async def test_a_malformed_answer_is_an_error(tmp_path: Path, said: bytes) -> None:
    async with feeder_socket(tmp_path / "s", lambda line, number: said):
        with pytest.raises(RelayError, match="not from a relay"):
            await publish(str(tmp_path / "s"), Event(data="a"))


async def test_answers_to_unknown_lines_are_ignored(tmp_path: Path) -> None:
    strange = (
        b'{"ack": 99, "id": "x"}\n{"error": "data: no", "line": 98}\n{"note": 1}\n{"ack": 1, "id": "e-1"}\n'
    )
    async with feeder_socket(tmp_path / "s", lambda line, number: strange):
        assert await publish(str(tmp_path / "s"), Event(data="a")) == ["e-1"]


async def test_without_a_relay_connecting_fails(tmp_path: Path) -> None:
    with pytest.raises(RelayError, match=r"cannot connect to .*: No such file"):
        await publish(f"unix:{tmp_path}/none", Event(data="a"))


@pytest.mark.parametrize("data", [object(), "\ud800", {1: {2}.__iter__()}])
async def test_data_that_is_not_json_is_rejected_before_it_is_sent(tmp_path: Path, data: object) -> None:
    async with feeder_socket(tmp_path / "s", accept) as lines:
        with pytest.raises(EventError) as raised:
            await publish(str(tmp_path / "s"), Event(data=data))
    assert raised.value.field == "data"
    assert lines == []


@pytest.mark.parametrize("ttl", [float("nan"), float("inf")])
async def test_a_ttl_that_json_cannot_express_is_rejected_before_it_is_sent(ttl: float) -> None:
    with pytest.raises(EventError, match=r"ttl: must be a number of seconds, not (nan|inf)"):
        await publish("http://127.0.0.1:1", Event(data="x", ttl=ttl))


async def test_leaving_with_an_error_does_not_wait(tmp_path: Path) -> None:
    async with feeder_socket(tmp_path / "s", lambda line, number: b""):
        publisher = await Publisher(str(tmp_path / "s")).__aenter__()
        future = await publisher.send(Event(data="a"))
        await publisher.__aexit__(ZeroDivisionError, ZeroDivisionError(), None)
        with pytest.raises(RelayError, match="was closed"):
            future.result()


async def test_over_http_one_request_publishes_all() -> None:
    async with scripted([answer(200, JSON, b'{"ids": ["e-1", "e-2"]}')]) as server:
        ids = await publish(server.url, [Event(data={"a": 1}, topic="x"), Event(data="ü")], token="sesame")
    assert ids == ["e-1", "e-2"]
    assert server.path(0) == "/publish"
    assert server.header(0, "Authorization") == "Bearer sesame"
    assert server.header(0, "Content-Type") == "application/json"
    body = server.requests[0].partition("\r\n\r\n")[2]
    assert msgspec.json.decode(body) == [{"data": {"a": 1}, "topic": "x"}, {"data": "ü"}]


async def test_no_events_make_no_request() -> None:
    async with scripted() as server:
        assert await publish(server.url, []) == []
    assert server.requests == []


@pytest.mark.parametrize(
    ("script", "error", "message"),
    [
        (answer(400, JSON, b'{"error": "topic: is empty", "field": "topic"}'), EventError, "topic: is empty"),
        (
            answer(401, JSON, b'{"error": "publishing needs the token"}'),
            RequestError,
            "401: publishing needs",
        ),
        (answer(502, "", b"<h1>Bad gateway</h1>"), RequestError, "502: an HTML page of another server"),
        (answer(503, ""), RequestError, "503: Reason"),
        (answer(200, JSON, b"[]"), RelayError, "not from a relay"),
        (answer(200, JSON, b"ok"), RelayError, "not from a relay"),
        (answer(200, JSON, b"[" * 100_000), RelayError, "not from a relay"),
        (answer(200, JSON, b'{"ids": [1]}'), RelayError, "not from a relay"),
        (answer(200, JSON, b'{"ids": []}'), RelayError, "not from a relay"),
        (answer(200, JSON, b'{"ids": ["e-1", "e-2"]}'), RelayError, "not from a relay"),
        (answer(503, JSON, b"[" * 4096), RequestError, "503: [["),
        (b"nonsense\r\n\r\n", LostError, "RemoteProtocolError"),
        (b"", LostError, "RemoteProtocolError"),
    ],
)
async def test_over_http_an_error_response_raises_the_matching_error(script: bytes, error: type, message: str) -> None:
    async with scripted([script]) as server:
        with pytest.raises(RelayError) as raised:
            await publish(server.url, Event(data="a"))
    assert type(raised.value) is error
    assert message in str(raised.value)


@pytest.mark.parametrize("address", ["http://ann:sesame@127.0.0.1:1/?x=sesame", "ftp://ann:sesame@127.0.0.1"])
async def test_an_error_does_not_show_the_password_in_an_address(address: str) -> None:
    with pytest.raises(RelayError, match=r"127\.0\.0\.1") as raised:
        await publish(address, Event(data="a"))
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize("token", ["sesame\n", "sesame\u00e9", "ses ame"])
async def test_a_token_that_no_header_can_contain_is_an_error_that_does_not_show_it(token: str) -> None:
    with pytest.raises(RelayError, match="the token has a character other than visible ASCII") as raised:
        await publish("http://127.0.0.1:1", Event(data="a"), token)
    assert "ses" not in str(raised.value)
    with pytest.raises(RelayError, match="the token has a character other than visible ASCII"):
        await anext(aiter(subscribe("http://127.0.0.1:1", token=token)))


async def test_the_error_for_a_header_does_not_show_its_value() -> None:
    async with scripted() as server:
        events = subscribe(server.url, headers={"Authorization": "Bearer sesame\n"})
        with pytest.raises(RelayError, match="the value of a header has a character") as raised:
            await anext(aiter(events))
    assert "sesame" not in str(raised.value)


@pytest.mark.parametrize("port", [0, 65536, 99999])
async def test_an_address_has_a_possible_port(port: int) -> None:
    with pytest.raises(RelayError, match=f"{port} is not a port"):
        await publish(f"http://127.0.0.1:{port}", Event(data="a"))


def test_signals_need_a_unix_socket() -> None:
    with pytest.raises(RelayError, match=r"on_signal: http://127\.0\.0\.1:1 sends no signals"):
        Publisher("http://127.0.0.1:1", on_signal=lambda topic, value: None)
