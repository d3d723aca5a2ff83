"""Files from the web: whole and verified, or not there; an interrupted download is continued.

What has come lies in a hidden file beside the target, ``.NAME.IDENTITY.part``, which an interrupt,
a lost connection or a full disk leaves. IDENTITY is a hash of what the server says about the file
(ETag, date, length), so that nothing is appended to the beginning of another file.

Only https is used, also after redirects (http for a server on this machine). Proxies are those of
the environment, as urllib takes them.
"""

import hashlib
import http.client
import logging
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from mace_train import __version__
from mace_train.atomic_files import sync_folder
from mace_train.errors import InputError, StorageError, system_error
from mace_train.progress import ProgressBar

LOGGER = logging.getLogger("mace_train")
STALLED_S = 20.0  # without a byte: then the connection counts as lost
PAUSE_S = 1.0  # before the same server is asked again
MOST_BYTES = 20 * 1000**3  # of a file whose size is not known; models have less than 1 GB
_ATTEMPTS = 3  # in a row that bring less than _BLOCK
_BLOCK = 1 << 18
_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02")  # of torch.save: zip, and before PyTorch 1.6 pickle
_LATER = (408, 429, *range(500, 600))  # status codes after which the same may succeed
_LOCAL = ("127.0.0.1", "localhost", "::1")


class _RefusedError(Exception):
    """This address does not give the file, however often it is asked."""


class _UnreachableError(_RefusedError):
    """There is no connection to this host."""


class _BrokenError(Exception):
    """The connection was lost, or the file changed meanwhile; the rest may come now."""


def download(
    addresses: Sequence[str], target: Path, *, n_bytes: int | None = None, sha256: str | None = None
) -> str:
    """Write the file to ``target`` and return its SHA-256, in hexadecimal digits.

    Args:
        addresses: Where it is, the first one first.
        target: The file to write; its folder is there, and no other process downloads to it now.
        n_bytes: The size of the file, if it is known.
        sha256: Its SHA-256, if it is known.

    Raises:
        InputError: no address gives it, with the reason for each; ``StorageError`` where there is
            no room. What had come stays in the hidden file.
    """
    reasons, unreachable = [], set()
    for address in addresses:
        host = urllib.parse.urlsplit(address).hostname
        if host in unreachable:
            continue
        try:
            return _Download(address, target, n_bytes, sha256).run()
        except (_RefusedError, _BrokenError) as error:
            reasons.append(f"{address}: {error}")
            if isinstance(error, _UnreachableError):
                unreachable.add(host)
    raise InputError("; ".join(reasons))


def is_torch_file(path: Path) -> bool:
    """Whether the file is complete as torch.save writes it, as far as its ends tell."""
    with path.open("rb") as file:
        begin = file.read(4)
    return begin.startswith(_BEGINNINGS[1]) or zipfile.is_zipfile(path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Download:
    """One file from one address."""

    def __init__(self, address: str, target: Path, n_bytes: int | None, sha256: str | None) -> None:
        self.address, self.target = address, target
        self.n_bytes, self.sha256 = n_bytes, sha256
        self.opener = _opener(address)
        self.was_reached = False

    def run(self) -> str:
        """SHA-256 of the file, which is in its place then."""
        failures = 0
        while True:
            before = self._n_kept()
            try:
                part, continued = self._receive()
                return self._install(part, continued)
            except _BrokenError:
                failures = 0 if self._n_kept() - before >= _BLOCK else failures + 1
                if failures == _ATTEMPTS:
                    raise
                time.sleep(PAUSE_S)

    def _receive(self) -> tuple[Path, bool]:
        """The file with all its bytes, and whether some of them were there before."""
        with self._opened(0) as response:
            identity, total = _identity(response), _total(response)
            self._check_size(total)
            part = self.target.with_name(f".{self.target.name}.{identity}.part")
            n_kept = part.stat().st_size if part.exists() else 0
            is_known = self.sha256 is not None or _is_identified(response)
            if n_kept == 0 or not is_known or (total is not None and n_kept > total):
                self._append(response, part, 0, total)
                return part, False
        if n_kept == total:
            return part, True
        LOGGER.info("continuing after %d of %s MB", n_kept // 10**6, _in_mb(total))
        with self._opened(n_kept) as response:
            if _identity(response) != identity:
                raise _BrokenError("the file changed while it was downloaded")
            begin = n_kept if response.status == 206 else 0  # else Range was ignored
            if response.status == 206 and _first_of(response) != n_kept:
                raise _RefusedError("it does not continue where it was asked to")
            self._append(response, part, begin, total)
        return part, begin > 0

    @contextmanager
    def _opened(self, first: int) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request for the bytes from ``first`` on; its errors in our words."""
        request = urllib.request.Request(  # noqa: S310 - _opener takes no other scheme
            self.address,
            headers={"User-Agent": f"mace-train/{__version__}", "Accept-Encoding": "identity"},
        )
        if first:
            request.add_header("Range", f"bytes={first}-")
        try:
            with closing(self.opener.open(request, timeout=STALLED_S)) as response:
                self.was_reached = True
                yield response
        except urllib.error.HTTPError as error:
            error.close()
            text = f"the server answers {error.code} {' '.join(str(error.reason).split())}"
            if error.code == 416 and first:  # it has no such bytes, so ours are of another file
                self._forget()
                raise _BrokenError(text) from None
            raise (_BrokenError if error.code in _LATER else _RefusedError)(text) from None
        except (OSError, http.client.HTTPException) as error:  # also URLError and TimeoutError
            is_cut = self.was_reached or not isinstance(error, urllib.error.URLError)
            raise (_BrokenError if is_cut else _UnreachableError)(_said(error)) from None

    def _append(
        self, response: http.client.HTTPResponse, part: Path, begin: int, total: int | None
    ) -> None:
        """Write what comes to ``part`` from ``begin`` on."""
        block = response.read1(_BLOCK)
        if begin == 0 and not block.startswith(_BEGINNINGS):
            kind = response.headers.get_content_type()
            raise _RefusedError(f"it gives no model but {kind} that begins {block[:24]!r}")
        self._check_room(part, begin, total)
        size, most = begin, total or MOST_BYTES
        label = f"downloading {self.target.name}"
        bar = ProgressBar(label, total or self.n_bytes or 0, counted="MB", log=True)
        with bar, _opened_for_writing(part, begin) as file:
            bar.done = begin
            while block:
                if size + len(block) > most:
                    raise _RefusedError(f"it gives more than the {most} bytes that it has")
                _write(file, block, part)
                n_counted = (size + len(block)) // 10**6 - size // 10**6
                size += len(block)
                bar.advance(len(block), n_counted)
                block = b"" if size == total else response.read1(_BLOCK)
        if total is not None and size < total:
            raise _BrokenError(f"the connection ended after {size} of {total} bytes")

    def _install(self, part: Path, continued: bool) -> str:
        """Verify, sync, rename; what is wrong is removed."""
        found = sha256_of(part)
        if not is_torch_file(part):
            problem = "what it gives is cut short, or no file of torch.save"
        elif self.sha256 is not None and found != self.sha256:
            problem = f"what it gives has the sha256 {found}, not {self.sha256} as published"
        else:
            with part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(part, self.target)
            sync_folder(self.target.parent)
            self._forget()
            return found
        part.unlink()
        # parts of two files, if the server does not say what distinguishes them
        raise (_BrokenError if continued else _RefusedError)(problem)

    def _check_size(self, total: int | None) -> None:
        if None not in (total, self.n_bytes) and total != self.n_bytes:
            raise _RefusedError(f"the server has {total} bytes, the published file {self.n_bytes}")
        if total is not None and total > MOST_BYTES:
            raise _RefusedError(f"{total} bytes are more than any model has")

    def _check_room(self, part: Path, begin: int, total: int | None) -> None:
        wanted = (total or self.n_bytes or 0) - begin
        free = shutil.disk_usage(part.parent).free
        if wanted > free:
            raise StorageError(
                f"{part.parent}: {free // 10**6} MB are free, {_in_mb(wanted)} MB are needed; free "
                "space there and give the same command again"
            )

    def _parts(self) -> list[Path]:
        return list(self.target.parent.glob(f".{self.target.name}.*.part"))

    def _n_kept(self) -> int:
        """Bytes in parts of all identities."""
        return sum(part.stat().st_size for part in self._parts())

    def _forget(self) -> None:
        for part in self._parts():
            part.unlink(missing_ok=True)


def _opener(address: str) -> urllib.request.OpenerDirector:
    """What opens this address and those it redirects to."""
    opener = urllib.request.OpenerDirector()
    is_local = urllib.parse.urlsplit(address).hostname in _LOCAL
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),
        *([urllib.request.HTTPHandler()] if is_local else []),
        _Redirects(is_local),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To https alone; of a server on this machine to this machine, too."""

    def __init__(self, is_local: bool) -> None:
        self.is_local = is_local

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        parts = urllib.parse.urlsplit(newurl)
        is_own = self.is_local and parts.scheme == "http" and parts.hostname in _LOCAL
        if parts.scheme != "https" and not is_own:
            raise _RefusedError(f"it redirects to {newurl[:200]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _identity(response: http.client.HTTPResponse) -> str:
    """12 digits that differ if the server has another file now."""
    headers = response.headers
    said = (headers.get("ETag", "").removeprefix("W/"), headers.get("Last-Modified", ""))
    return hashlib.sha256(repr((*said, _total(response))).encode()).hexdigest()[:12]


def _is_identified(response: http.client.HTTPResponse) -> bool:
    return "ETag" in response.headers or "Last-Modified" in response.headers


def _total(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the whole file, if the server says it."""
    text = response.headers.get("Content-Length", "")
    if response.status == 206:
        text = response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


def _first_of(response: http.client.HTTPResponse) -> int | None:
    """The byte that a partial answer begins with."""
    text = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None


@contextmanager
def _opened_for_writing(part: Path, begin: int) -> Iterator[IO[bytes]]:
    try:
        file = open(part, "r+b" if begin else "wb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise system_error(error, part) or InputError(f"{part}: {error.strerror}") from error
    with file:
        file.seek(begin)
        yield file


def _write(file: IO[bytes], block: bytes, part: Path) -> None:
    try:
        while block:
            block = block[file.write(block) :]
    except OSError as error:
        raise system_error(error, part) or InputError(f"{part}: {error.strerror}") from error


def _said(error: Exception) -> str:
    """What went wrong with a connection, on one line."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no answer for {STALLED_S:.0f} s"
    text = " ".join(str(getattr(reason, "strerror", None) or reason).split())
    return text or type(error).__name__


def _in_mb(n_bytes: int | None) -> str:
    return "?" if n_bytes is None else f"{n_bytes / 1e6:.0f}"
