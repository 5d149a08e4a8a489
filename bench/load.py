"""The traffic: curl through a SOCKS port, to the sink behind the exit. MB and GB are powers of ten."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

MB = 1_000_000
KINDS = ("down_1", "down_8", "up_1")
STREAMS = {"down_1": 1, "down_8": 8, "up_1": 1}
CURL_TIMEOUT = 120.0


class LoadError(Exception):
    """A transfer failed or was not what was asked for."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What curl says of its transfer: payload bytes, seconds in all and until the reply's first byte."""

    size: int
    seconds: float
    first_byte: float


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Several transfers at once: payload bytes, wall seconds from the first start to the last end."""

    size: int
    seconds: float

    @property
    def mb_per_s(self) -> float:
        """Throughput in MB/s."""
        return self.size / MB / self.seconds


def curl_command(socks: str, user: str, url: str, upload: Path | None = None) -> list[str]:
    """A curl that goes through `socks` with the SOCKS user name `user` and writes its figures as JSON."""
    command = ["curl", "--silent", "--show-error", "--output", "/dev/null", "--noproxy", ""]
    command += ["--max-time", str(CURL_TIMEOUT), "--proxy", f"socks5h://{user}:x@{socks}"]
    command += ["--write-out", "%{stderr}%{json}\n"]
    if upload is not None:
        command += ["--upload-file", str(upload), "--header", "Expect:"]
    return [*command, url]


def parse_transfer(text: str, exit_code: int, expected: int, upload: bool) -> Transfer:
    """The figures in curl's JSON; a LoadError unless exactly `expected` bytes were moved with status 200."""
    try:
        figures = json.loads(text[text.index("{") :])
    except ValueError:
        raise LoadError(f"curl {exit_code}: {text.strip() or 'no figures'}") from None
    size = int(figures["size_upload" if upload else "size_download"])
    if exit_code or figures["http_code"] != 200 or size != expected:
        raise LoadError(
            f"curl {exit_code}, status {figures['http_code']}, {size} of {expected} bytes: "
            f"{figures.get('errormsg') or 'no message'}"
        )
    return Transfer(size, float(figures["time_total"]), float(figures["time_starttransfer"]))


class Curl:
    """One running transfer of `size` bytes, down or (with `upload`) up."""

    def __init__(self, socks: str, user: str, port: int, size: int, upload: Path | None = None) -> None:
        self.size = size
        self.upload = upload
        url = f"http://127.0.0.1:{port}/{'up' if upload else size}"
        self.process = subprocess.Popen(
            curl_command(socks, user, url, upload),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self) -> Transfer:
        """Wait for the end; LoadError when it failed."""
        _, text = self.process.communicate(timeout=CURL_TIMEOUT + 10)
        return parse_transfer(text, self.process.returncode, self.size, self.upload is not None)

    def abandon(self) -> None:
        """End it if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class Load:
    """Makes traffic to the sink at `port`; keeps one file to upload. Use it as a context manager."""

    def __init__(self, port: int, mb: int) -> None:
        self.port = port
        self.mb = mb
        self._folder = tempfile.TemporaryDirectory(prefix="backrooms-bench-")
        self._file = Path(self._folder.name) / "upload"

    def __enter__(self) -> Load:
        with self._file.open("wb") as file:
            file.truncate(self.mb * MB)  # a sparse file: zeros that take no room
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def users(self, kind: str, prefix: str) -> list[str]:
        """The SOCKS user names of the streams of `kind`, each of which is isolated from the others."""
        return [f"{prefix}-{kind}-{i}" for i in range(STREAMS[kind])]

    def warm_up(self, socks: str, users: Sequence[str], patience: float = 30.0) -> None:
        """A tiny request for each user, so that its circuit exists; tried again for `patience` seconds."""
        end = time.monotonic() + patience
        waiting = list(users)
        while waiting:
            curls = [(user, Curl(socks, user, self.port, 1)) for user in waiting]
            failed: list[str] = []
            reason: LoadError | None = None
            for user, curl in curls:
                try:
                    curl.finish()
                except LoadError as error:
                    failed.append(user)
                    reason = error
            if reason is not None and time.monotonic() > end:
                raise LoadError(f"{len(failed)} circuits through {socks} do not work: {reason}")
            if failed:
                time.sleep(0.5)
            waiting = failed

    def start(self, kind: str, socks: str, users: Sequence[str]) -> Running:
        """Start the transfers of `kind`, about `mb` MB in all."""
        size = -(-self.mb * MB // len(users))
        if kind.startswith("up"):
            size = self.mb * MB
        started = time.monotonic()
        upload = self._file if kind.startswith("up") else None
        return Running([Curl(socks, user, self.port, size, upload) for user in users], started)

    def first_byte_ms(self, socks: str, user: str, repetitions: int) -> float:
        """Median milliseconds from the start of a request to its reply's first byte, on a ready circuit."""
        self.warm_up(socks, [user])
        times = [Curl(socks, user, self.port, 1).finish().first_byte for _ in range(repetitions)]
        return 1000 * median(times)


class Running:
    """Transfers that have been started."""

    def __init__(self, curls: list[Curl], started: float) -> None:
        self._curls = curls
        self._started = started

    def active(self) -> bool:
        """Whether any of them still runs."""
        return any(curl.process.poll() is None for curl in self._curls)

    def finish(self) -> LoadResult:
        """Wait for all; the slowest counts."""
        transfers = [curl.finish() for curl in self._curls]
        if len(transfers) == 1:  # curl's own clock leaves out the start of its process
            return LoadResult(transfers[0].size, transfers[0].seconds)
        return LoadResult(sum(t.size for t in transfers), time.monotonic() - self._started)

    def abandon(self) -> None:
        """End those that still run."""
        for curl in self._curls:
            curl.abandon()
