"""A loopback network of C tor: 3 directory authorities that are exits too, 2 relays and a client.

`TestingTorNetwork` with short voting intervals, all on 127.0.0.1, ports freely chosen. It needs `tor` and
`tor-gencert` (Debian's package `tor`). See the section TESTING NETWORK OPTIONS of tor(1).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.control import ControlError
from bench.network import Network, NetworkError, Relay, free_ports, open_control

AUTHORITIES = 3
RELAYS = 2
VOTING_SECONDS = 20


@dataclass(frozen=True, slots=True)
class TorVariant:
    """How the tors of a network differ from what is shipped. `note` says it in words."""

    name: str
    note: str
    options: tuple[str, ...] = ()


VARIANTS = {
    variant.name: variant
    for variant in (
        TorVariant("tor_default", "default scheduler (KIST), ConfluxEnabled 0", ("ConfluxEnabled 0",)),
        TorVariant("tor_vanilla", "Schedulers Vanilla, ConfluxEnabled 0", ("Schedulers Vanilla", "ConfluxEnabled 0")),
        TorVariant("tor_conflux", "as shipped: default scheduler (KIST), conflux on"),
    )
}


def program(name: str) -> str:
    """A program's path, or its bare name when it is not installed. Debian's tor is in sbin, not on every PATH."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(name, path=path) or name


def find_tor() -> str | None:
    """Why there can be no tor network on this machine, or None when there can be one."""
    missing = [name for name in ("tor", "tor-gencert") if program(name) == name]
    return f"not installed: {', '.join(missing)} (Debian: apt install tor)" if missing else None


def tor_version() -> str:
    """The first line of `tor --version`."""
    text = subprocess.run([program("tor"), "--version"], capture_output=True, text=True, check=True).stdout
    return text.splitlines()[0].rstrip(".")


def torrc_common(folder: Path, variant: TorVariant, owner: int) -> str:
    """Options of every tor of the network; each one ends when the process `owner` does."""
    options = "\n".join(variant.options)
    return f"""\
TestingTorNetwork 1
DataDirectory {folder}
NumCPUs 1
PathsNeededToBuildCircuits 0.67
Log notice file {folder}/log
__OwningControllerProcess {owner}
{options}
"""


def torrc_relay(nickname: str, or_port: int, is_exit: bool) -> str:
    """Options of a relay."""
    exit_policy = "ExitRelay 1\nExitPolicy accept *:*\nExitPolicyRejectPrivate 0\n" if is_exit else "ExitRelay 0\n"
    return f"""\
Nickname {nickname}
Address 127.0.0.1
ORPort 127.0.0.1:{or_port}
SocksPort 0
ContactInfo none@example.org
AssumeReachable 1
{exit_policy}"""


def torrc_authority(dir_port: int) -> str:
    """Options that make a relay a directory authority."""
    return f"""\
DirPort 127.0.0.1:{dir_port}
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
TestingV3AuthInitialVotingInterval {VOTING_SECONDS}
TestingV3AuthInitialVoteDelay 4
TestingV3AuthInitialDistDelay 4
V3AuthVotingInterval {VOTING_SECONDS}
V3AuthVoteDelay 4
V3AuthDistDelay 4
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
"""


def torrc_client(socks_port: int, control_port: int) -> str:
    """Options of the client."""
    return f"""\
SocksPort 127.0.0.1:{socks_port}
ControlPort 127.0.0.1:{control_port}
CookieAuthentication 1
ClientRejectInternalAddresses 0
"""


class TorNetwork:
    """A `Testbed` of tors in `folder`."""

    def __init__(self, variant: TorVariant, folder: Path) -> None:
        self.variant = variant
        self.name = variant.name
        self.folder = folder.absolute()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._identities: dict[str, str] = {}
        self._ports = (0, 0)

    def launch(self) -> None:
        """Make keys and configuration, start the tors."""
        self.folder.mkdir(parents=True)
        names = [f"auth{i}" for i in range(AUTHORITIES)] + [f"relay{i}" for i in range(RELAYS)]
        ports = free_ports(len(names) + AUTHORITIES + 2)
        or_ports = dict(zip(names, ports, strict=False))
        dir_ports = dict(zip(names[:AUTHORITIES], ports[len(names) :], strict=False))
        self._ports = (ports[-2], ports[-1])
        torrcs = {}
        for name in names:
            torrcs[name] = torrc_common(self._home(name), self.variant, os.getpid())
            torrcs[name] += torrc_relay(name, or_ports[name], name in dir_ports)
            if name in dir_ports:
                torrcs[name] += torrc_authority(dir_ports[name])
        torrcs["client"] = torrc_common(self._home("client"), self.variant, os.getpid())
        torrcs["client"] += torrc_client(*self._ports)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            signers = dict(zip(dir_ports, pool.map(self._make_authority, dir_ports.items()), strict=True))
            self._identities = dict(
                zip(names, pool.map(lambda name: self._make_identity(name, torrcs[name]), names), strict=True)
            )
        authorities = "".join(
            f"DirAuthority {name} orport={or_ports[name]} no-v2 v3ident={signers[name]} "
            f"127.0.0.1:{port} {self._identities[name]}\n"
            for name, port in dir_ports.items()
        )
        for name, torrc in torrcs.items():
            self._home(name).mkdir(mode=0o700, exist_ok=True)
            file = self._home(name) / "torrc"
            file.write_text(torrc + authorities)
            self._processes[name] = subprocess.Popen(
                [program("tor"), "-f", str(file), "--quiet"],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is handled by the parent, in its own order
            )

    def wait(self, timeout: float) -> Network:
        """The network, once the client knows all relays and has built a circuit."""
        end = time.monotonic() + timeout
        socks_port, control_port = self._ports
        address = f"127.0.0.1:{control_port}"
        try:
            with open_control(address, timeout) as control:
                while True:
                    self._check_alive()
                    known = set(re.findall(r"^r (\S+)", control.getinfo("ns/all"), re.MULTILINE))
                    established = control.getinfo("status/circuit-established") == "1"
                    if established and known >= self._identities.keys():
                        break
                    if time.monotonic() > end:
                        phase = control.getinfo("status/bootstrap-phase")
                        raise NetworkError(
                            f"{self.name}: not up after {timeout:.0f} s, "
                            f"knows {sorted(known)}; {phase}\n{self._log('client')}"
                        )
                    time.sleep(0.25)
        except (ControlError, OSError) as error:
            self._check_alive()
            raise NetworkError(f"{self.name}: {error}\n{self._log('client')}") from error
        relays = tuple(Relay(name, fp, self._processes[name].pid) for name, fp in self._identities.items())
        return Network(self.name, f"127.0.0.1:{socks_port}", address, self._processes["client"].pid, relays)

    def stop(self) -> None:
        """End all tors. They are killed after two seconds: their relays would wait for circuits to finish."""
        for process in self._processes.values():
            process.terminate()
        end = time.monotonic() + 2
        for process in self._processes.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _home(self, name: str) -> Path:
        return self.folder / name

    def _make_authority(self, authority: tuple[str, int]) -> str:
        """Make the voting keys of an authority; the fingerprint other tors know it by."""
        name, dir_port = authority
        keys = self._home(name) / "keys"
        keys.mkdir(parents=True, mode=0o700)
        self._home(name).chmod(0o700)
        certificate = keys / "authority_certificate"
        command = [program("tor-gencert"), "--create-identity-key", "--passphrase-fd", "0", "-m", "12"]
        command += ["-a", f"127.0.0.1:{dir_port}", "-i", str(keys / "authority_identity_key")]
        command += ["-s", str(keys / "authority_signing_key"), "-c", str(certificate)]
        subprocess.run(
            command,
            input=b"benchmark\n",
            capture_output=True,
            check=True,
        )
        return parse_v3_identity(certificate.read_text())

    def _make_identity(self, name: str, torrc: str) -> str:
        """Let tor make a relay's keys; its fingerprint."""
        self._home(name).mkdir(mode=0o700, exist_ok=True)
        file = self._home(name) / "torrc"
        # An authority must name one authority before it knows any: the dummy is overwritten by launch().
        dummy = f"DirAuthority x orport=1 no-v2 v3ident={'0' * 40} 127.0.0.1:1 {'0' * 40}\n"
        file.write_text(torrc + dummy)
        reply = subprocess.run(
            [program("tor"), "--list-fingerprint", "-f", str(file), "--quiet"],
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            return parse_fingerprint(reply.stdout, name)
        except ValueError as error:
            raise NetworkError(f"{self.name}: {error}\n{self._log(name)}") from None

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise NetworkError(f"{self.name}: {name} ended with {process.returncode}\n{self._log(name)}")

    def _log(self, name: str, lines: int = 8) -> str:
        try:
            return "\n".join((self._home(name) / "log").read_text().splitlines()[-lines:])
        except FileNotFoundError:
            return f"({name} wrote no log)"


def parse_fingerprint(text: str, nickname: str) -> str:
    """The 40 hex digits in what `tor --list-fingerprint` prints (`nickname ABCD 0123 ...`)."""
    for line in text.splitlines():
        name, _, digits = line.partition(" ")
        digits = digits.replace(" ", "")
        if name == nickname and re.fullmatch(r"[0-9A-F]{40}", digits):
            return digits
    raise ValueError(f"no fingerprint of {nickname} in {text!r}")


def parse_v3_identity(certificate: str) -> str:
    """The fingerprint line of an authority's certificate."""
    match = re.search(r"^fingerprint ([0-9A-F]{40})$", certificate, re.MULTILINE)
    if match is None:
        raise ValueError("no fingerprint in the authority certificate")
    return match[1]
