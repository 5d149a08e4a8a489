"""The house rules of docs/architecture.md, held by the source itself."""

from __future__ import annotations

import ast
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "backrooms").rglob("*.py"))
ALL_SOURCES = sorted(path for top in ("backrooms", "twisted", "tests", "bench") for path in (ROOT / top).rglob("*.py"))

MAX_LINES = 400
FORBIDDEN_IN_PURE = {
    "twisted",
    "time",
    "random",
    "secrets",
    "socket",
    "asyncio",
    "threading",
    "logging",
    "ssl",
    "OpenSSL",
}
FORBIDDEN_CALLS_IN_PURE = {
    ("os", "urandom"),
    ("os", "getrandom"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
}
# Pure machines that live beside the Twisted code which drives them.
PURE_FILES = {
    "proxy.addressmap",
    "proxy.body",
    "proxy.dns",
    "proxy.events",
    "proxy.forward",
    "proxy.http",
    "proxy.isolation",
    "proxy.message",
    "proxy.request",
    "proxy.rules",
    "proxy.session",
    "proxy.socks",
    "proxy.tunnel",
    "control.grammar",
}
PICKLES = {"pickle", "cPickle", "_pickle", "shelve", "marshal", "dill", "cloudpickle", "jsonpickle"}
BYTE_METHODS = {"dataReceived", "lineReceived", "rawDataReceived", "stringReceived", "datagramReceived"}


def drawing() -> list[set[str]]:
    """The arrows of docs/architecture.md: sets of packages, the top one first."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("    ") and " > " in line]
    levels = "".join(lines).replace("{", "").replace("}", "").split(">")
    return [{name.strip() for name in level.split(",")} for level in levels]


DRAWING = drawing()
RANK = {name: rank for rank, names in enumerate(DRAWING) for name in names}
PURE = {name for name, rank in RANK.items() if rank >= RANK["circuit"]}


def module_name(path: Path) -> str:
    """`wire.cell` for backrooms/wire/cell.py; the empty string for backrooms/__init__.py."""
    parts = path.relative_to(ROOT / "backrooms").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(source: str) -> Iterator[str]:
    """Every module that is imported anywhere in the source, functions included, as a dotted name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def arrow_faults(module: str, source: str) -> list[str]:
    """Which imports of the module go against the arrows."""
    here = module.partition(".")[0]
    faults = []
    for name in imports(source):
        if name.startswith("."):
            faults.append(f"{module} has a relative import: {name}")
        top, _, rest = name.partition(".")
        there = rest.partition(".")[0]
        if top != "backrooms" or there in ("", "__version__", here, "errors"):  # errors are everybody's
            continue
        if here == "":
            faults.append(f"backrooms/__init__.py imports {name}")
        elif RANK.get(there, -1) <= RANK.get(here, len(DRAWING)):
            faults.append(f"{module} imports {name}, which is not below it")
    return faults


def purity_faults(module: str, source: str) -> list[str]:
    """What the module uses that only the Twisted half, or only crypto, may use."""
    tops = {name.partition(".")[0] for name in imports(source)}
    faults = [f"{module} imports {name}" for name in tops & FORBIDDEN_IN_PURE]
    if "cryptography" in tops and not module.startswith("crypto"):
        faults.append(f"{module} imports cryptography")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if (owner, node.attr) in FORBIDDEN_CALLS_IN_PURE:
                faults.append(f"{module} uses {owner}.{node.attr}")
    faults += [
        f"{module} imports {name}" for name in imports(source) if tuple(name.split(".")) in FORBIDDEN_CALLS_IN_PURE
    ]
    return faults


def byte_readers(source: str) -> set[str]:
    """The classes that take bytes from a transport themselves."""
    classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
    return {
        one.name
        for one in classes
        if any(isinstance(item, ast.FunctionDef) and item.name in BYTE_METHODS for item in one.body)
    }


def test_every_module_is_in_the_drawing() -> None:
    missing = {module_name(path).partition(".")[0] for path in SOURCES} - set(RANK) - {""}
    assert not missing, f"docs/architecture.md does not draw {missing}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_arrows(path: Path) -> None:
    assert arrow_faults(module_name(path), path.read_text()) == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_the_pure_half_is_pure(path: Path) -> None:
    module = module_name(path)
    if module.partition(".")[0] in PURE or module in PURE_FILES:
        assert purity_faults(module, path.read_text()) == []


def test_the_pure_files_exist() -> None:
    assert {module_name(path) for path in SOURCES} >= PURE_FILES


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("wire.cell", "from backrooms.crypto import kdf"),
        ("wire.cell", "def f():\n    import backrooms.node.timers"),
        ("path.selector", "from backrooms.padding.machine import Machine"),
        ("node.relay", "from backrooms import control"),
        ("node.relay", "from ..control import server"),
        ("config", "from backrooms.levels import LEVELS"),
        ("errors", "from backrooms.config import Config"),
        ("control.nodeview", "from backrooms.service import Node"),
    ],
)
def test_a_wrong_arrow_is_found(module: str, line: str) -> None:
    assert arrow_faults(module, line)


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "from twisted.internet import reactor",
        "from os import urandom",
        "import os\nx = os.urandom(3)",
        "import datetime\nx = datetime.datetime.now()",
        "from cryptography import x509",
    ],
)
def test_impurity_is_found(line: str) -> None:
    assert purity_faults("circuit.origin", line)


@pytest.mark.parametrize(
    "line", ["from backrooms.wire import codec", "from backrooms.errors import WireError", "import os"]
)
def test_a_right_import_is_no_fault(line: str) -> None:
    assert arrow_faults("circuit.origin", line) == []
    assert purity_faults("circuit.origin", line) == []


def test_driver_is_the_only_class_that_reads_the_network() -> None:
    found = {(module_name(path), name) for path in SOURCES for name in byte_readers(path.read_text())}
    below = {(module, name) for module, name in found if module.startswith("transport.")}
    assert found - below == {("node.driver", "Driver"), ("proxy.dnsport", "DnsPort")}  # which has no stream to drive
    assert len(below) <= 1, f"one pipe is enough in transport/: {below}"


@pytest.mark.parametrize("path", ALL_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle_anywhere(path: Path) -> None:
    assert not {name.partition(".")[0] for name in imports(path.read_text())} & PICKLES


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): n for path in ALL_SOURCES if (n := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long, f"more than {MAX_LINES} lines ask to be two files: {long}"


def test_modules_are_nouns() -> None:
    assert not [path for path in SOURCES if path.stem in {"utils", "util", "helpers", "common", "base", "misc"}]


def test_the_plugin_imports_nothing_of_ours() -> None:
    source = (ROOT / "twisted" / "plugins" / "backrooms_plugin.py").read_text()
    assert not [name for name in imports(source) if name.startswith("backrooms")]


def test_twisted_stays_a_namespace() -> None:
    assert not list((ROOT / "twisted").rglob("__init__.py"))


def test_every_package_of_the_table_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    assert packages
    assert not [name for name in packages if not (ROOT / "backrooms" / name).is_dir()]


def test_docstrings_name_sections_that_exist() -> None:
    headings = set(re.findall(r"^#+ (.+)$", (ROOT / "docs" / "protocol.md").read_text(), re.MULTILINE))
    named = {
        section
        for path in ALL_SOURCES
        for group in re.findall(r'docs/protocol\.md((?:(?:,| and) "[^"]+")+)', path.read_text())
        for section in re.findall(r'"([^"]+)"', group)
    }
    assert len(named) > 5
    assert named <= headings, f"docs/protocol.md has no section {named - headings}"


CONSTANTS = re.findall(
    r"^\| `([\w.]+\.[\w.]+)` \| ([\d,.]+) \|", (ROOT / "docs" / "protocol.md").read_text(), re.MULTILINE
)


def test_the_protocol_document_lists_constants() -> None:
    assert len(CONSTANTS) > 50
    assert len(dict(CONSTANTS)) == len(CONSTANTS)


@pytest.mark.parametrize(("name", "value"), CONSTANTS, ids=[name for name, _ in CONSTANTS])
def test_constants_are_as_the_protocol_document_says(name: str, value: str) -> None:
    found = pkgutil.resolve_name(f"backrooms.{name}")
    assert float(value.replace(",", "")) == found, f"docs/protocol.md, Constants: {name} is {found}"


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def anchors(path: Path) -> set[str]:
    """What a link may name in a Markdown file, made of its headings as GitHub does."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        if "://" in file:
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken, f"{path.name}: {broken}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "decisions").iterdir()), ids=lambda path: path.name)
def test_decisions_are_short_numbered_and_have_a_status(path: Path) -> None:
    lines = path.read_text().splitlines()
    number = re.fullmatch(r"(\d{3})-[a-z0-9-]+\.md", path.name)
    assert number is not None
    assert lines[0].startswith(f"# {number[1]}: ")
    assert re.fullmatch(r"Status: (proposed|accepted|replaced by \d{3}), \d{4}-\d\d-\d\d\.", lines[2])
    assert len(lines) < 40


LEFT_BEHIND = """
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure


def test_bad_logged_failure():
    Logger().failure("x", Failure(ValueError()))


def test_bad_dropped_deferred():
    fail(ValueError())


def test_bad_dropped_coroutine():
    async def go():
        await deferLater(reactor, 0)
        raise ValueError
    Deferred.fromCoroutine(go())


def test_bad_delayed_call():
    reactor.callLater(3600, print)


def test_good_after_them(clean):
    Logger().failure("x", Failure(ValueError()))
    fail(KeyError())
    reactor.callLater(0, int)
    assert len(clean.flush(ValueError, KeyError)) == 2


async def test_good_coroutine():
    await deferLater(reactor, 0.001)
"""


def test_a_test_that_leaves_something_behind_fails(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(LEFT_BEHIND)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run([*command, "-rA"], cwd=tmp_path, capture_output=True, text=True, check=False)
    failed = set(re.findall(r"^(?:ERROR|FAILED) \S*::(test_\w+)", done.stdout, re.MULTILINE))
    passed = set(re.findall(r"^PASSED \S*::(test_\w+)", done.stdout, re.MULTILINE))
    assert failed == set(re.findall(r"test_bad_\w+", LEFT_BEHIND)), done.stdout
    assert passed - failed == set(re.findall(r"test_good_\w+", LEFT_BEHIND)), done.stdout
