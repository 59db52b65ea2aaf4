"""Servers on this machine: one that speaks S3, one for files over HTTP, both counting what they are asked for."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import fsspec

SECRET = "topsecret"
"""What nobody is to see in an error."""
_counter = itertools.count()
_REFUSAL = b"<Error><Code>AccessDenied</Code><Message>not today</Message></Error>"


class Request(NamedTuple):
    """What was asked for, and the bytes of the answer."""

    method: str
    path: str
    query: str
    nbytes: int


class S3Server:
    """moto's server, which keeps objects in memory.

    Attributes:
        url: Its address.
        requests: What it was asked for.
        refuse: Requests for which this is true are answered with an error.
        page: How many objects a listing has at most.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.requests: list[Request] = []
        self.refuse: Callable[[Request], bool] = lambda request: False
        self.page = 1000
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Any:
        request = Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["QUERY_STRING"], 0)
        if self.refuse(request):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [] if request.method == "HEAD" else [_REFUSAL]

        if "list-type" in request.query and self.page < 1000:
            environ["QUERY_STRING"] += f"&max-keys={self.page}"

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
            self.requests.append(request._replace(nbytes=length if request.method == "GET" else 0))
            return start_response(status, headers, *rest)

        return self._app(environ, start)

    def stop(self) -> None:
        """Answer nothing any more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextmanager
    def counted(self) -> Iterator[list[Request]]:
        """Give the list of what is asked for from now on."""
        self.requests = []
        yield self.requests


@contextmanager
def s3_of_fsspec() -> Iterator[S3Server]:
    """Give a server that is what ``s3://`` means to fsspec."""
    server = S3Server()
    before = dict(fsspec.config.conf)
    fsspec.config.conf["s3"] = {
        "endpoint_url": server.url,
        "key": "somebody",
        "secret": SECRET,
        # What a busy machine answers late is not asked for again: what is asked for is counted.
        "config_kwargs": {"connect_timeout": 120, "read_timeout": 120},
    }
    try:
        yield server
    finally:
        server.stop()
        fsspec.config.conf.clear()
        fsspec.config.conf.update(before)


@contextmanager
def new_bucket(server: S3Server) -> Iterator[str]:
    """Give the name of a bucket of the server that is what ``s3://`` means; its objects go with it."""
    bucket = f"bucket-{next(_counter)}"
    files = fsspec.filesystem("s3")
    files.mkdir(bucket)
    yield bucket
    server.refuse, server.page = lambda request: False, 1000
    files.invalidate_cache()
    files.rm(bucket, recursive=True)


class WebServer:
    """Files over HTTP.

    Args:
        files: Their bytes by path.
        ranges: Whether parts are served, and not only whole files.
        says_length: Whether an answer says how long the file is.
    """

    def __init__(self, files: dict[str, bytes], *, ranges: bool = True, says_length: bool = True) -> None:
        self.sent = sent = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                data = files.get(self.path.partition("?")[0])
                if data is None:
                    self.send_error(404)
                    return
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if ranges else None
                begin, end = (int(asked[1]), min(int(asked[2]) + 1, len(data))) if asked else (0, len(data))
                self.send_response(206 if asked else 200)
                if asked:
                    self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
                if says_length:
                    self.send_header("Content-Length", str(end - begin))
                self.end_headers()
                if with_body:
                    try:
                        self.wfile.write(data[begin:end])
                    except OSError:
                        return  # whoever asked has had enough
                    sent.append(end - begin)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
