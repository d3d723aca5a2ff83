"""A web server on 127.0.0.1 that gives a file, and fails as servers do."""

import io
import random
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WITH_TINY = """
import sys
from mace_train.foundation_models.table import MODELS, FoundationModel
MODELS["tiny"] = FoundationModel("tiny", "of a test", "MIT", (sys.argv.pop(1),), None, None)
from mace_train.__main__ import run
run()
"""  # the program, with a model at the address that is its first argument
PAGE = b"<!DOCTYPE html><html><body>Sign in to this network</body></html>"


def torch_file(seed: int = 0, n_bytes: int = 1_000_000) -> bytes:
    """A zip file as torch.save writes it, with noise in it: the same bytes at any time of day."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr(zipfile.ZipInfo("model/data.pkl"), random.Random(seed).randbytes(n_bytes))
    return content.getvalue()


@dataclass
class Server:
    """What it gives; each request takes the first of ``plan``, and later ones are served.

    A plan is "cut N", "stall N" (after N bytes), "slow", "page" (HTML), "no range", "no length",
    "swap" (the file is replaced by ``next``), "to URL" (a redirect) or a status code.
    """

    content: bytes
    etag: str | None = '"first"'
    plan: list[str] = field(default_factory=list)
    next: bytes = b""
    requests: list[str | None] = field(default_factory=list)  # their Range
    paths: list[str] = field(default_factory=list)
    address: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def url(self, name: str = "a.model") -> str:
        """Where a file of this name is."""
        return f"{self.address}/{name}"


class _Handler(BaseHTTPRequestHandler):
    state: Server

    def do_GET(self) -> None:
        state = self.state
        state.requests.append(self.headers.get("Range"))
        state.paths.append(self.path)
        what, _, value = (state.plan.pop(0) if state.plan else "serve").partition(" ")
        with suppress(OSError):  # the client has left
            self.answer(what, value)

    def answer(self, what: str, value: str) -> None:
        state = self.state
        if what == "swap":
            state.content, state.etag = state.next, state.etag and '"second"'
        if what == "page":
            self.begin(200, {"Content-Type": "text/html", "Content-Length": str(len(PAGE))})
            self.wfile.write(PAGE)
        elif what == "to":
            self.begin(302, {"Location": value})
        elif what.isdigit():
            self.begin(int(what), {"Content-Length": "0"})
        else:
            self.give(what, int(value or 0))

    def give(self, what: str, n_bytes: int) -> None:
        whole = self.state.content
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if what == "no" or first == 0:
            first, code, headers = 0, 200, {"Content-Length": str(len(whole))}
        elif first >= len(whole):
            self.begin(416, {"Content-Range": f"bytes */{len(whole)}"})
            return
        else:
            code = 206
            headers = {
                "Content-Length": str(len(whole) - first),
                "Content-Range": f"bytes {first}-{len(whole) - 1}/{len(whole)}",
            }
        if what == "nolength":
            del headers["Content-Length"]
        if self.state.etag is not None:
            headers["ETag"] = self.state.etag
        self.begin(code, headers)
        if what == "slow":
            for begin in range(0, len(whole) - first, 100_000):
                self.wfile.write(whole[first:][begin : begin + 100_000])
                self.state.released.wait(0.1)
            return
        end = first + n_bytes if what in ("cut", "stall") else len(whole)
        self.wfile.write(whole[first:end])
        if what == "stall":
            self.state.released.wait(60)

    def begin(self, code: int, headers: dict[str, str]) -> None:
        self.send_response_only(code)
        for name, value in {"Content-Type": "application/octet-stream", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def serving(content: bytes) -> Iterator[Server]:
    """A server that runs in threads of this process."""
    state = Server(content)
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        state.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            thread.join()


def names(folder: Path) -> set[str]:
    """The files in a folder."""
    return {path.name for path in folder.iterdir()}
