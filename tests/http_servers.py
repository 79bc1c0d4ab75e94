# SPDX-License-Identifier: Apache-2.0
"""Real servers on the tests' application: WSGI and ASGI."""

import contextlib
import gc
import socket
import threading
import wsgiref.simple_server

import uvicorn
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    """Answers without a line on stderr."""

    def log_message(self, *_):
        """Say nothing."""


class Announcing(uvicorn.Server):
    """A uvicorn that tells when it serves."""

    def __init__(self, config):
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets=None):
        """Start, and tell."""
        await super().startup(sockets)
        self.ready.set()


@contextlib.contextmanager
def wsgi_server():
    """Serve by WSGI; give the port."""
    with wsgiref.simple_server.make_server(
        "127.0.0.1", 0, get_wsgi_application(), handler_class=Quiet
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def asgi_server():
    """Serve by ASGI; give the port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(get_asgi_application(), log_level="critical", lifespan="off", loop="asyncio")
    server = Announcing(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        assert server.ready.wait(10)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
        gc.collect()
