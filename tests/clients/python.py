"""One session of a Python client: python.py LIBRARY HOST:PORT QUEUE session|hold."""

import sys
import time

library, address, queue, mode = sys.argv[1:]
host, port = address.rsplit(":", 1)
BINARY = bytes(range(256)) + b"\r\nEND\r\n"


def text(value):
    return value.decode() if isinstance(value, bytes) else value


class Pymemcache:
    """Its set asks for no reply by default, and it looks its answer up by the whole key."""

    def __init__(self):
        from pymemcache.client.base import Client

        self.client = Client((host, int(port)), timeout=20)

    def put(self, data):
        self.client.set(queue, data)

    def get(self, key):
        return self.client.get(key)

    def rest(self):
        assert self.client.set(queue, "x", noreply=False) is True
        value, cas = self.client.gets(queue)
        assert value == b"x" and int(cas) > 0, (value, cas)
        assert self.client.delete(queue, noreply=False) is True
        assert self.client.flush_all(noreply=False) is True
        assert self.client.version().startswith(b"2.")
        assert b"curr_items" in self.client.stats()


class PythonMemcached:
    def __init__(self):
        import memcache

        self.client = memcache.Client([address], socket_timeout=20)

    def put(self, data):
        assert self.client.set(queue, data)

    def get(self, key):
        return self.client.get(key)

    def rest(self):
        # Other types travel by flags.
        assert self.client.set(queue, {"n": 1}) and self.client.get(queue) == {"n": 1}
        assert self.client.delete(queue)
        self.client.flush_all()
        assert "curr_items" in self.client.get_stats()[0][1]


class Pylibmc:
    def __init__(self):
        import pylibmc

        self.client = pylibmc.Client([address], behaviors={"receive_timeout": 20_000_000})

    def put(self, data):
        assert self.client.set(queue, data)

    def get(self, key):
        return self.client.get(key)

    def rest(self):
        assert self.client.set(queue, [1, 2]) and self.client.get(queue) == [1, 2]
        assert self.client.delete(queue)
        assert self.client.flush_all()
        assert self.client.get_stats()


class Pykestrel:
    """Kestrel's own client: it knows queues, not keys."""

    def __init__(self):
        import client

        self.client = client.Client([address])

    def rest(self):
        name = queue + "_late"
        assert text(self.client.get(name, 10_000)) == "late"
        for data in ("one", "two"):
            assert self.client.add(queue, data)
        assert self.client.peek(queue) == "one"
        assert self.client.next(queue) == "one"
        self.client.abort(queue)
        assert self.client.next(queue) == "one"
        assert self.client.next(queue) == "two"
        self.client.finish(queue)
        assert self.client.get(queue) is None
        self.client.flush(queue)
        self.client.delete(queue)

    def hold(self):
        assert text(self.client.next(queue + "_held", 10_000)) == "held"


def session(client):
    if isinstance(client, Pykestrel):
        return client.rest()
    assert client.get(queue) is None
    for data in ("one", "two", BINARY):
        client.put(data)
    assert text(client.get(f"{queue}/open")) == "one"
    assert client.get(f"{queue}/abort") is None
    assert text(client.get(f"{queue}/open/t=1000")) == "one"
    assert text(client.get(f"{queue}/close/open")) == "two"
    assert client.get(f"{queue}/close") is None
    assert client.get(f"{queue}/peek") == BINARY
    assert client.get(queue) == BINARY
    assert client.get(f"{queue}/t=50") is None
    assert text(client.get(f"{queue}_late/t=20000")) == "late"
    client.rest()


client = {"pymemcache": Pymemcache, "python_memcached": PythonMemcached, "pylibmc": Pylibmc, "pykestrel": Pykestrel}[library]()
if mode == "session":
    session(client)
else:
    if isinstance(client, Pykestrel):
        client.hold()
    else:
        assert text(client.get(f"{queue}_held/open/t=10000")) == "held"
    time.sleep(600)
