"""Relays TCP connections from a listening socket of any network namespace to a server out here.

A socket belongs to the namespace it was made in, whoever holds it: accepting on the guest's side
and connecting on ours needs no route, no address translation and no second process.
"""

import contextlib
import socket
import struct
import threading

PIECE_BYTES = 256 * 1024
CONNECT_TIMEOUT_S = 10


class Relay:
    """Accepts on `listener` until closed; each connection is carried to `target` in two threads."""

    def __init__(self, listener: socket.socket, target: tuple[str, int]) -> None:
        self._listener = listener
        self._target = target
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                outer = socket.create_connection(self._target, CONNECT_TIMEOUT_S)
            except OSError:
                inner.close()  # the guest sees a refusal as an early end
                continue
            outer.settimeout(None)
            with self._lock:
                self._sockets += [inner, outer]
            for end in (inner, outer):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=_carry, args=(source, sink), daemon=True).start()

    def close(self) -> None:
        """Stops listening and resets every connection, as a client that dies would."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for end in self._sockets:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    # Wakes the thread that reads; the reset goes out when the descriptor closes.
                    end.shutdown(socket.SHUT_RD)
                end.close()
            self._sockets.clear()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    piece = bytearray(PIECE_BYTES)
    view = memoryview(piece)
    with contextlib.suppress(OSError, ValueError):
        while length := source.recv_into(piece):
            sink.sendall(view[:length])
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
