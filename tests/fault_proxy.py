"""A proxy in front of an S3 server that fails as networks and servers do, by chance and by seed."""

import contextlib
import random
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping

HOST = "127.0.0.1"
_DEADLINE_S = 30.0
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'

#: Every fault, with a probability at which work still advances.
HEAVY = {
    "error": 0.04,  # 500 InternalError
    "slow_down": 0.04,  # 503 SlowDown
    "delay": 0.04,  # an answer that comes late
    "reset": 0.04,  # the connection is reset before the server hears of the request
    "cut_request": 0.04,  # the server gets half of the request
    "lost_answer": 0.04,  # the server does it, and the answer is lost
    "cut_answer": 0.04,  # the answer ends in the middle of its body
    "damaged_request": 0.02,  # a bit of its body is another one
    "damaged_answer": 0.02,  # the same, where the answer carries a checksum
}


class FaultProxy:
    """Listens on `url` and passes requests on to a server, or not.

    faults: name to probability; poison: a part of paths that are refused. Both may be changed at
    any time. A fault that finds nothing to strike (a damaged answer where there is no body) waits
    for the next request that has something. injected: how often each fault really struck.
    """

    def __init__(self, server_port: int, faults: Mapping[str, float], seed: int):
        self.server_port = server_port
        self.faults = dict(faults)
        self.poison = b""
        self.injected: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._waiting: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._listener = _Listener((HOST, 0), self)
        self.url = f"http://{HOST}:{self._listener.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        """Listen for the length of a block."""
        thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._listener.shutdown()
            self._listener.server_close()
            thread.join(_DEADLINE_S)

    def answer(self, client: socket.socket) -> None:
        """Pass one request on, and its answer back, if chance allows."""
        request = _read_request(client)
        if request is None:
            return
        path = request.partition(b" HTTP/")[0]
        fault = "poison" if self.poison and self.poison in path else self._draw()
        if fault == "poison":
            client.sendall(_error(400, "EntityTooLarge", "Your upload is too large."))
        elif fault == "error":
            client.sendall(_error(500, "InternalError", "We encountered an internal error."))
        elif fault == "slow_down":
            client.sendall(_error(503, "SlowDown", "Please reduce your request rate."))
        elif fault == "reset":
            _reset(client)
        elif fault == "cut_request":
            with socket.create_connection((HOST, self.server_port), _DEADLINE_S) as server:
                server.sendall(request[: len(request) // 2])
            _reset(client)
        else:
            if fault == "delay":
                time.sleep(0.3)
            self._forward(client, request, fault)
            return
        self.injected[fault] += 1

    def _draw(self) -> str:
        with self._lock:
            chance = self._random.random()
        for name, probability in self.faults.items():
            chance -= probability
            if chance < 0:
                return name
        return ""

    def _strikes(self, drawn: str, possible: Mapping[str, bool]) -> str:
        """The drawn fault or one that waited, if one of them is possible here; "" for none."""
        with self._lock:
            self._waiting[drawn] += drawn in possible
            for name in possible:
                if possible[name] and self._waiting[name] and name in self.faults:
                    self._waiting[name] -= 1
                    self.injected[name] += 1
                    return name
        return ""

    def _forward(self, client: socket.socket, request: bytes, fault: str) -> None:
        self.injected[fault] += fault in ("delay", "lost_answer")
        if self._strikes(fault, {"damaged_request": not request.endswith(b"\r\n\r\n")}):
            request = _damaged(request)
        parts = []
        with contextlib.suppress(OSError):  # of a server that is down
            with socket.create_connection((HOST, self.server_port), _DEADLINE_S) as server:
                server.sendall(request)
                while part := server.recv(1 << 16):
                    parts.append(part)
        answer = b"".join(parts)
        if not answer or fault == "lost_answer":
            _reset(client)
            return
        head, _, body = answer.partition(b"\r\n\r\n")
        possible = {"cut_answer": bool(body), "damaged_answer": bool(body) and b"x-amz-checksum" in head.lower()}
        fault = self._strikes(fault, possible)
        if fault == "cut_answer":
            answer = answer[: len(answer) - (len(body) + 1) // 2]
        elif fault == "damaged_answer":
            answer = _damaged(answer)
        client.sendall(answer)


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultProxy):
        self.proxy = proxy
        super().__init__(address, _Handler)


class _Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Listener)
        self.request.settimeout(_DEADLINE_S)
        with contextlib.suppress(OSError):  # a client that was killed
            self.server.proxy.answer(self.request)


def _read_request(client: socket.socket) -> bytes | None:
    """A whole request as it was signed, made to end its connection; None if none came."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(1 << 16)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length, kept = 0, []
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        # Host, although it is ours, is part of the signature; these two are not.
        if name.lower() == b"expect":
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif name.lower() != b"connection":
            kept.append(line)
    parts = [body]
    missing = length - len(body)
    while missing > 0:
        parts.append(client.recv(1 << 16))
        if not parts[-1]:
            return None
        missing -= len(parts[-1])
    return b"\r\n".join([*kept, b"Connection: close", b"", b""]) + b"".join(parts)


def _error(status: int, code: str, message: str) -> bytes:
    body = _ERROR.format(code, message).encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _damaged(message: bytes) -> bytes:
    return message[:-1] + bytes([message[-1] ^ 1])


def _reset(client: socket.socket) -> None:
    # Closing without lingering sends RST instead of FIN.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
