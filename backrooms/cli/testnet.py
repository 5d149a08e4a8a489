"""`backrooms testnet`: a whole network on this machine, for trying and for tests."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import rmtree, which
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

import click

from backrooms.cli.client import ControlAddress, ControlClient, ControlError
from backrooms.cli.localnet import (
    CLIENT,
    HOST,
    Folder,
    Layout,
    Processes,
    TestnetError,
    busy_ports,
    free_ports,
    with_keys,
)
from backrooms.cli.target import Failure
from backrooms.errors import BackroomsError
from backrooms.keystore.file import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

MIN_RELAYS = 3
DEFAULT_RELAYS = 6
DEFAULT_EXITS = 2
HOPS = 3
TRY_SECONDS = 5.0
PAUSE = 0.1

Step = Callable[[], object]


class Interrupted(BaseException):
    """Ctrl-C, or somebody ended us: everything is stopped on the way out."""


class Page(ThreadingHTTPServer):
    """A little web page behind the exits, so that there is something to fetch without the Internet."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), _PageHandler)
        number = secrets.token_hex(8)
        self.text = f"It works: an exit fetched this page for you.\nNumber of this page: {number}\n"

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A visitor who left early is no error."""


class _PageHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "testnet"
    sys_version = ""
    server: Page
    timeout: ClassVar[float] = 60.0

    def do_GET(self) -> None:
        body = self.server.text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Visitors are nobody's business."""


def fetch_path(layout: Layout, page: Page) -> list[str]:
    """Fetch the page through the client's SOCKS port; the nicknames of the relays it came through.

    `OSError` or `ControlError` when it does not work, or not yet.
    """
    with socket.create_connection((HOST, layout.socks), TRY_SECONDS) as proxy:
        proxy.settimeout(TRY_SECONDS)
        proxy.sendall(b"\x05\x01\x00")
        _expect(proxy, b"\x05\x00", 2)
        proxy.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(HOST) + page.port.to_bytes(2, "big"))
        _expect(proxy, b"\x05\x00", 10)
        proxy.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}:{page.port}\r\n\r\n".encode())
        answer = b""
        while page.text.encode() not in answer:
            data = proxy.recv(65536)
            if not data:
                raise OSError("the page came only in part")
            answer += data
        # the connection is still open, so the client can tell which circuit it is on
        with ControlClient(ControlAddress(host=HOST, port=layout.control), TRY_SECONDS) as client:
            streams = client.info("stream-status").splitlines()
            circuits = client.info("circuit-status").splitlines()
    target = f"{HOST}:{page.port}"
    used = {words[2] for words in map(str.split, streams) if len(words) > 3 and words[3] == target}
    for words in map(str.split, circuits):
        if words and words[0] in used:
            return [hop.partition("~")[2] for hop in words[2].split(",")]
    raise ControlError("the client does not list the circuit of the stream")


def _expect(proxy: socket.socket, begin: bytes, size: int) -> None:
    """Read `size` bytes of a SOCKS answer that begins as it should."""
    answer = b""
    while len(answer) < size:
        data = proxy.recv(size - len(answer))
        if not data:
            raise OSError("the SOCKS port closed the connection")
        answer += data
    if not answer.startswith(begin):
        raise OSError(f"the SOCKS port refused: {answer[:2].hex()}")


def known_relays(layout: Layout) -> int:
    """How many relays the client knows; 0 while it does not answer yet."""
    try:
        with ControlClient(ControlAddress(host=HOST, port=layout.control), TRY_SECONDS) as client:
            return int(client.json("backrooms/status")["relays"]["known"])
    except (ControlError, KeyError, TypeError, ValueError):
        return 0


class Testnet:
    """One run of the network."""

    def __init__(self, folder: Folder, layout: Layout, console: Console) -> None:
        self.folder = folder
        self.layout = layout
        self.console = console
        self.page = Page()
        self.processes = Processes(folder)

    def start(self, timeout: float) -> list[str]:
        """Start everything and wait until it works; the path of the first request."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        names = [*(relay.nickname for relay in self.layout.relays), CLIENT]
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True, auto_refresh=False) as progress:
            task = progress.add_task("", total=3 * len(names) - 1)

            def step() -> None:
                progress.advance(task)
                progress.refresh()  # by hand: a thread that does it would be in the way of fork

            progress.update(task, description="keys")
            self.layout = with_keys(self.folder, self.layout, step)
            self.layout.save(self.folder.layout_file)
            self.folder.write_configs(self.layout)
            progress.update(task, description="processes")
            for name in names:
                self.processes.start(name)
                step()
            threading.Thread(target=self.page.serve_forever, daemon=True).start()
            end = time.monotonic() + timeout
            progress.update(task, description="relays")
            self._wait_for_relays(end, step)
            progress.update(task, description="first circuit")
            path = self._wait_for_circuit(end)
            step()
        self._write()
        return path

    def _wait_for_relays(self, end: float, step: Step) -> None:
        """Wait until the client knows them all."""
        known = 0
        while known < len(self.layout.relays):
            self._check(end, f"the client knows {known} of {len(self.layout.relays)} relays")
            time.sleep(PAUSE)
            now = known_relays(self.layout)
            for _ in range(now - known):
                step()
            known = max(known, now)

    def _wait_for_circuit(self, end: float) -> list[str]:
        """Wait until a request passes a circuit of three hops."""
        last = ""
        while True:
            self._check(end, f"no request has passed the network: {last}")
            try:
                path = fetch_path(self.layout, self.page)
            except (OSError, ControlError) as error:
                last = str(error)
                time.sleep(PAUSE)
                continue
            if len(path) != HOPS:
                raise TestnetError(f"a request passed {len(path)} relays instead of {HOPS}: {path}")
            return path

    def _check(self, end: float, problem: str) -> None:
        """`TestnetError` if a node died or the time is up."""
        for name, status in self.processes.ended().items():
            raise TestnetError(
                f"{name} ended with status {status}; the end of {self.folder.log(name)}:\n"
                f"{self.processes.end_of_log(name)}"
            )
        if time.monotonic() > end:
            raise TestnetError(f"the network is not ready in time: {problem}; logs are in {self.folder.path}/*/log")

    def _write(self) -> None:
        """Tell scripts where everything is."""
        relays = [
            {
                "id": relay.id,
                "nickname": relay.nickname,
                "pid": self.processes.pid(relay.nickname),
                "address": relay.address,
                "exit": relay.exit,
            }
            for relay in self.layout.relays
        ]
        state = {
            "pid": os.getpid(),
            "socks": f"{HOST}:{self.layout.socks}",
            "http": f"{HOST}:{self.layout.http}",
            "control": f"{HOST}:{self.layout.control}",
            "relays": relays,
            "client": {"pid": self.processes.pid(CLIENT)},
            "page": f"http://{HOST}:{self.page.port}/",
        }
        write_atomic(self.folder.testnet_file, (json.dumps(state, indent=2) + "\n").encode(), 0o644)

    def describe(self, path: list[str], seconds: float) -> None:
        """Say what is there and what to try."""
        layout, url = self.layout, f"http://{HOST}:{self.page.port}/"
        say = self.console.print
        say(f"[bold]{len(layout.relays)} relays, {layout.exits()} of them exits, ready after {seconds:.1f} s")
        say(f"path used   client > {' > '.join(path)} > {url}")
        say(f"SOCKS       {HOST}:{layout.socks}")
        say(f"HTTP proxy  {HOST}:{layout.http}")
        say(f"control     {HOST}:{layout.control}")
        say(f"folder      {self.folder.path}")
        say("\nTry in another shell:")
        say(f"  curl --socks5-hostname {HOST}:{layout.socks} {url}", style="bold")
        say(f"  curl --proxytunnel --proxy http://{HOST}:{layout.http} {url}")
        say(f"  {command()} circuits --control {HOST}:{layout.control}")
        say("\nCtrl-C stops it all.")

    def watch(self) -> None:
        """Until we are interrupted: tell which relays end. `TestnetError` when the client does."""
        while True:
            for name, status in self.processes.ended().items():
                if name == CLIENT:
                    raise TestnetError(f"the client ended with status {status}:\n{self.processes.end_of_log(name)}")
                self.console.print(f"{name} has ended with status {status}")
            time.sleep(PAUSE)

    def stop(self) -> None:
        """Stop all processes."""
        self.processes.stop()
        self.page.server_close()


def command() -> str:
    """What to type for this program: its whole path, where a shell does not find it by its name."""
    beside = Path(sys.executable).with_name("backrooms")
    found = which("backrooms")
    if not beside.exists() or (found is not None and os.path.samefile(found, beside)):
        return "backrooms"
    return str(beside)


def choose_layout(folder: Folder, relays: int | None, exits: int | None, base_port: int | None) -> Layout:
    """What is asked for; what is not asked for is as it was at the last start."""
    last = Layout.load(folder.layout_file)
    if relays is None:
        relays = len(last.relays) if last else DEFAULT_RELAYS
    if exits is None:
        exits = last.exits() if last and len(last.relays) == relays else min(DEFAULT_EXITS, relays)
    if exits > relays:
        raise TestnetError(f"{exits} exits, but only {relays} relays")
    count = relays + 3
    same = last is not None and (len(last.relays), last.exits()) == (relays, exits)
    if base_port is not None:
        ports = list(range(base_port, base_port + count))
        if busy := busy_ports(ports):
            raise TestnetError(f"not free: port {', '.join(map(str, busy))} of {HOST}; choose another --base-port")
    elif last is not None and same and not busy_ports(last.ports()):
        return last
    else:
        ports = free_ports(count)
    layout = Layout.plan(relays, exits, ports)
    return layout.with_ids_of(last) if last is not None else layout


@contextmanager
def signals() -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP raise `Interrupted` once."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)  # stopping takes seconds at most; let it finish
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command()
@click.option("--relays", type=click.IntRange(MIN_RELAYS, 200), help="How many relays; as at the last start, else 6.")
@click.option("--exits", type=click.IntRange(1, 200), help="How many of them are exits; as at the last start, else 2.")
@click.option(
    "--dir",
    "directory",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where keys, configuration and logs are; they stay there for the next start.",
)
@click.option("--base-port", type=click.IntRange(1, 65000), help="Use the ports from here on; else free ones.")
@click.option("--keep", is_flag=True, help="Without --dir: do not remove the temporary folder at the end.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds until it must work.")
def testnet(
    relays: int | None, exits: int | None, directory: Path | None, base_port: int | None, keep: bool, timeout: float
) -> None:
    """Run a whole network on this machine: one process for each relay, and a client.

    It ends with Ctrl-C. While it is usable, DIR/testnet.json has all addresses and process ids.

    \b
    Examples:
      backrooms testnet
      backrooms testnet --relays 12 --exits 3 --dir ./testnet
      backrooms status --testnet ./testnet
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    temporary = directory is None
    folder = Folder(directory or Path(tempfile.mkdtemp(prefix="backrooms-")))
    began = time.monotonic()
    with signals():
        run: Testnet | None = None
        try:
            folder.open()
            run = Testnet(folder, choose_layout(folder, relays, exits, base_port), console)
            run.describe(run.start(timeout), time.monotonic() - began)
            run.watch()
        except Interrupted:
            console.print("stopping")
        except BackroomsError as error:
            keep = True  # the logs say why
            raise Failure(str(error)) from None
        except OSError as error:
            raise Failure(str(error)) from None
        finally:
            if run is not None:
                run.stop()
            folder.close()
            if temporary and not keep:
                rmtree(folder.path, ignore_errors=True)
