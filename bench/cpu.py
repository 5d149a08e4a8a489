"""What processes cost: CPU seconds and memory, as the kernel counts them (proc(5))."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


class ProcessGone(Exception):
    """A process that is being measured has ended."""


@dataclass(frozen=True, slots=True)
class CpuSample:
    """CPU time of a process so far: nanoseconds by thread; seconds of all threads, ended ones included."""

    threads: Mapping[int, int]
    total: float


def parse_schedstat(text: str) -> int:
    """Nanoseconds on the CPU: the first of the three numbers of /proc/PID/task/TID/schedstat."""
    return int(text.split()[0])


def parse_stat_seconds(text: str) -> float:
    """User and system seconds of /proc/PID/stat; the command name in it may hold blanks and brackets."""
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def parse_busy_seconds(text: str) -> float:
    """CPU seconds that were not idle, of all processors together, from the first line of /proc/stat."""
    fields = [int(field) for field in text.splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / TICKS


def machine_busy_seconds() -> float:
    """CPU seconds this machine has spent on anything until now."""
    return parse_busy_seconds(Path("/proc/stat").read_text())


def parse_kb(text: str, key: str) -> float:
    """Megabytes (10^6) behind `key` in a /proc file of `Key:   N kB` lines (status, smaps_rollup)."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024 / 1e6
    raise KeyError(f"no {key} in {text[:40]!r}")


def cpu_sample(pid: int, proc: Path = Path("/proc")) -> CpuSample:
    """CPU time of `pid` until now."""
    threads = {}
    try:
        for task in (proc / str(pid) / "task").iterdir():
            try:
                threads[int(task.name)] = parse_schedstat((task / "schedstat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue  # the thread ended while we looked; `total` still counts it
        return CpuSample(threads, parse_stat_seconds((proc / str(pid) / "stat").read_text()))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessGone(f"process {pid} has ended") from error


def cpu_between(before: CpuSample, after: CpuSample) -> float:
    """CPU seconds spent between two samples of one process.

    The nanosecond counters of a thread vanish with the thread; when one ended in between, the coarser
    counter of the whole process (10 ms steps) is taken instead.
    """
    if before.threads.keys() - after.threads.keys():
        return after.total - before.total
    return sum(ns - before.threads.get(tid, 0) for tid, ns in after.threads.items()) / 1e9


def cpu_samples(pids: Iterable[int]) -> dict[int, CpuSample]:
    """A sample of each process."""
    return {pid: cpu_sample(pid) for pid in pids}


def cpu_by_pid(before: Mapping[int, CpuSample], after: Mapping[int, CpuSample]) -> dict[int, float]:
    """CPU seconds of each process between two calls of `cpu_samples`."""
    return {pid: cpu_between(sample, after[pid]) for pid, sample in before.items()}


def rss_mb(pid: int) -> float:
    """Resident memory in MB (10^6 bytes), pages shared with other processes included."""
    return parse_kb(Path(f"/proc/{pid}/status").read_text(), "VmRSS")


def pss_mb(pid: int) -> float:
    """Resident memory in MB with every shared page divided among its users."""
    return parse_kb(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss")
