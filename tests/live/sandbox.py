"""Runs a command under the kernel filters of a systemd unit, which needs no systemd: `sandbox.py UNIT COMMAND...`

What a unit asks of seccomp(2) is set up as systemd does it: the allowed system calls and their error number
(SystemCallFilter=, SystemCallErrorNumber=), no memory that can be written and executed (MemoryDenyWriteExecute=), only
some kinds of sockets (RestrictAddressFamilies=), and no new privileges.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EQUAL, _MASKED_EQUAL = 4, 7
_NOT_EQUAL = 1
_PROT_WRITE, _PROT_EXEC, _SHM_EXEC = 2, 4, 0o100000


class _Compare(ctypes.Structure):
    """`struct scmp_arg_cmp`: argument `arg` compared by `op`; of a masked comparison `a` is the mask."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def settings(unit: Path) -> dict[str, list[str]]:
    """The values of each key of a unit file, in their order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            found.setdefault(key.strip(), []).append(value.strip())
    return found


def _members(word: str) -> Iterator[str]:
    """The system calls that a word of a filter stands for."""
    if not word.startswith("@"):
        yield word
        return
    command = ["systemd-analyze", "syscall-filter", "--no-pager", word]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    for line in lines[1:]:
        if line.strip() and not line.strip().startswith("#"):
            yield from _members(line.strip())


def allowed(filters: list[str]) -> set[str]:
    """The system calls that SystemCallFilter= lines allow: later ones add to what is there, or with ~ take away."""
    names = set(_members("@default"))
    for line in filters:
        found = {name for word in line.removeprefix("~").split() for name in _members(word)}
        names = names - found if line.startswith("~") else names | found
    return names


class _Filter:
    def __init__(self, default: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(ctypes.c_uint32(default)))

    def add(self, action: int, name: str, *compare: _Compare) -> None:
        number = self._lib.seccomp_syscall_resolve_name(name.encode())
        if number < 0:
            return  # another machine's
        rules = (_Compare * len(compare))(*compare)
        done = self._lib.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(compare)), rules
        )
        if done:
            raise OSError(-done, f"{name}: {os.strerror(-done)}")

    def load(self) -> None:
        if done := self._lib.seccomp_load(self._context):
            raise OSError(-done, os.strerror(-done))


def enter(unit: Path) -> None:
    """Put this process, and what it becomes by exec, under the filters of the unit."""
    keys = settings(unit)
    number = getattr(errno, keys["SystemCallErrorNumber"][-1])
    calls = _Filter(_ERRNO | number)
    for name in sorted(allowed(keys["SystemCallFilter"])):
        calls.add(_ALLOW, name)
    memory = _Filter(_ALLOW)
    denied = _ERRNO | errno.EPERM
    if keys["MemoryDenyWriteExecute"][-1] == "yes":
        both = _PROT_WRITE | _PROT_EXEC
        memory.add(denied, "mmap", _Compare(2, _MASKED_EQUAL, both, both))
        memory.add(denied, "mprotect", _Compare(2, _MASKED_EQUAL, _PROT_EXEC, _PROT_EXEC))
        memory.add(denied, "pkey_mprotect", _Compare(2, _MASKED_EQUAL, _PROT_EXEC, _PROT_EXEC))
        memory.add(denied, "shmat", _Compare(2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC))
    families = {int(getattr(socket, word)) for word in keys["RestrictAddressFamilies"][-1].split()}
    for family in set(range(64)) - families:
        memory.add(_ERRNO | errno.EAFNOSUPPORT, "socket", _Compare(0, _EQUAL, family, 0))
    memory.load()
    calls.load()


if __name__ == "__main__":
    enter(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
