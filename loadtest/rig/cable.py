"""A TCP connection that a test or a measurement can cut: a proxy with one thread per direction."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field

FIRST_BYTES_MAX = 4096


@dataclass
class Connection:
    """One connection through a cable, and the first bytes of each direction."""

    ends: tuple[socket.socket, socket.socket]
    sent: bytes = b""
    received: bytes = b""
    left: int | None = None  # bytes for the client until the cut; None without a cut
    reset: bool = False  # the cut is a reset
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """End both sides."""
        if self.reset:
            client = self.ends[0]
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RD)  # wakes the thread that reads, and sends nothing
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Cable:
    """Forwards the connections of a port to a server, and can cut all of them.

    Args:
        port: of the server.
        http1_0: turn each HTTP/1.1 request into one of HTTP/1.0, as old proxies do.
    """

    def __init__(self, port: int, *, http1_0: bool = False) -> None:
        self.target = port  # of the server; changes affect new connections
        self.flowing = threading.Event()  # when cleared, bytes for the clients wait
        self.flowing.set()
        self._http1_0 = http1_0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections: list[Connection] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                try:
                    connection = Connection((client, socket.create_connection(("127.0.0.1", self.target))))
                except OSError:
                    client.close()
                    continue
                for end in connection.ends:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections.append(connection)
                for copy in (self._upward, self._downward):
                    threading.Thread(target=copy, args=(connection,), daemon=True).start()

    def _upward(self, connection: Connection) -> None:
        client, server = connection.ends
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if self._http1_0:
                    data = data.replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", 1)
                connection.sent = (connection.sent + data)[:FIRST_BYTES_MAX]
                server.sendall(data)
        connection.close()

    def _downward(self, connection: Connection) -> None:
        client, server = connection.ends
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                connection.received = (connection.received + data)[:FIRST_BYTES_MAX]
                self.flowing.wait()
                with connection.lock:
                    if connection.left is not None:
                        data = data[: connection.left]
                        connection.left -= len(data)
                client.sendall(data)
                if connection.left == 0:
                    break
        connection.close()

    def cut(self) -> None:
        """Cut the open connections."""
        connections, self.connections = self.connections, []
        for connection in connections:
            connection.close()

    def cut_after(self, count: int, *, reset: bool = False) -> None:
        """Forward this number of bytes to each client that is connected now, then cut its connection.

        Args:
            count: the number of bytes.
            reset: send a TCP reset instead of an orderly end.
        """
        for connection in self.connections:
            with connection.lock:
                connection.left, connection.reset = count, reset

    def close(self) -> None:
        """Accept no more, and cut the open connections."""
        self.flowing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()
