import selectors
import socket
import struct
import sys
from collections.abc import Iterator

HEADER = struct.Struct("!I")  # the length of what follows: TCP knows no messages


def messages(buffer: bytearray) -> Iterator[bytes]:
    while len(buffer) >= HEADER.size:
        (length,) = HEADER.unpack_from(buffer)
        end = HEADER.size + length
        if len(buffer) < end:
            return  # the rest has not arrived yet
        yield bytes(buffer[HEADER.size : end])
        del buffer[:end]


def main(listen: str, target: str) -> None:
    selector = selectors.DefaultSelector()
    server = socket.create_server(("127.0.0.1", int(listen)))
    shouted = socket.create_connection(("127.0.0.1", int(target)))
    buffers: dict[socket.socket, bytearray] = {}
    selector.register(server, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is server:
                peer, _ = server.accept()
                buffers[peer] = bytearray()
                selector.register(peer, selectors.EVENT_READ)
                continue
            peer = key.fileobj
            data = peer.recv(65536)
            if not data:
                selector.unregister(peer)
                peer.close()
                del buffers[peer]
                continue
            buffers[peer] += data
            for line in messages(buffers[peer]):
                body = line.decode().upper().encode()
                shouted.sendall(HEADER.pack(len(body)) + body)


if __name__ == "__main__":
    main(*sys.argv[1:])
