"""The shape of the tree: who imports whom, what stays in which room, and how large a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "flagscale_vla"

BASE = {"config", "records"}
ROOMS: dict[str, set[str]] = {
    "config": {"config"},
    "records": set(),
    "reports": {"config"},
    "mcore": BASE,
    "robots": BASE,
    "action": BASE | {"robots"},
    "data": BASE | {"reports", "robots", "action"},
    "model": BASE | {"mcore"},
    "hf": BASE | {"reports", "mcore", "model", "action"},
    "train": BASE | {"reports", "mcore", "robots", "action", "data", "model", "hf"},
    "policy": BASE | {"mcore", "robots", "action", "data", "model", "hf"},
    "sim": BASE | {"reports", "robots", "data", "policy"},
    "plan": BASE | {"mcore", "model"},
    "view": BASE | {"reports", "robots", "action", "data"},
}
"""Room to the rooms it may import, besides itself."""

DOORS: dict[tuple[str, str], set[str]] = {
    ("sim", "policy"): {"client"},
    ("sim", "data"): {"place", "pool", "shards", "read", "store", "tar"},
    ("policy", "data"): {"recipe", "pack"},
}
"""(room, other) to the only modules of `other` that it may import: shard reading and writing, and processes, for the
simulators, the making of samples for the policy, and the policy through its client alone."""

LONGEST = 500
SWALLOWS_ERRORS = {"sim"}
"""Rooms whose edge may catch any exception: an episode that dies is counted as an error, not as a failure."""


@cache
def tree_of(file: Path) -> ast.Module:
    """The syntax tree of a source file."""
    return ast.parse(file.read_text(), str(file))


def sources(*tops: str) -> list[Path]:
    """Every Python file of ours under the named folders or files."""
    files = [path for top in tops for path in ([ROOT / top] if top.endswith(".py") else (ROOT / top).rglob("*.py"))]
    return sorted(files)


SHIPPED = sources(PACKAGE, "launch", "tools", "run.py")
PACKAGED = sources(PACKAGE)


def name_of(file: Path) -> str:
    """Dotted module name of a file."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(file) for file in SHIPPED}


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, wherever in the file; a submodule in `from x import y` counts as x.y."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import; write the whole name"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names if f"{module}.{alias.name}" in NAMES]
            yield from ((node.lineno, name) for name in inner or [module])


def room_of(module: str) -> str:
    """The room of one of our modules: `flagscale_vla.data.pack` is in `data`."""
    return module.split(".")[1] if "." in module else ""


def is_ours(module: str) -> bool:
    """Whether a module belongs to the package."""
    return module == PACKAGE or module.startswith(PACKAGE + ".")


def forbidden(importer: str, module: str) -> bool:
    """Whether the table refuses that one of our modules imports another."""
    room, other = room_of(importer), room_of(module)
    if room == other:
        return False
    doors = DOORS.get((room, other))
    return other not in ROOMS.get(room, set()) or (doors is not None and module.split(".")[2] not in doors)


def found(lines: list[str]) -> str:
    """A failure's message."""
    return "\n".join(["", *lines])


def test_rooms_import_only_what_the_table_allows() -> None:
    bad = [
        f"{file.relative_to(ROOT)}:{line}: {module}"
        for file in PACKAGED
        for line, module in imports(file)
        if is_ours(module) and forbidden(name_of(file), module)
    ]
    assert not bad, found(bad)


@pytest.mark.parametrize(
    ("importer", "module", "refused"),
    [
        ("data.loader", "robots.statistics", False),
        ("data.loader", "data.plan", False),
        ("data.loader", "mcore.topology", True),
        ("mcore.engine", "model.vla", True),
        ("sim.evaluate", "policy.client", False),
        ("sim.evaluate", "policy.decoding", True),
        ("sim.evaluate", "train.report", True),
        ("records", "config.data", True),
    ],
)
def test_the_table_refuses(importer: str, module: str, refused: bool) -> None:
    assert forbidden(f"{PACKAGE}.{importer}", f"{PACKAGE}.{module}") is refused


def test_every_room_is_in_the_table() -> None:
    present = {room_of(name_of(file)) for file in PACKAGED} - {""}
    assert present <= ROOMS.keys()


def test_the_package_imports_no_program() -> None:
    programs = {"run", "launch", "tools", "tests"}
    bad = [
        f"{file.relative_to(ROOT)}:{line}: {module}"
        for file in PACKAGED
        for line, module in imports(file)
        if module.split(".")[0] in programs
    ]
    assert not bad, found(bad)


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name_of(file): {module for _, module in imports(file) if module in NAMES} for file in SHIPPED}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_table_has_no_circle() -> None:
    TopologicalSorter({room: others - {room} for room, others in ROOMS.items()}).prepare()


def test_accelerators_stay_in_mcore() -> None:
    bad = []
    for file in SHIPPED:
        if room_of(name_of(file)) == "mcore":
            continue
        lines = [
            line
            for line, module in imports(file)
            if module.split(".")[0] in {"megatron", "transformer_engine", "flash_attn"}
            or module.startswith("torch.cuda")
        ]
        lines += [
            node.lineno for node in ast.walk(tree_of(file)) if isinstance(node, ast.Attribute) and node.attr == "cuda"
        ]
        bad += [f"{file.relative_to(ROOT)}:{line}" for line in lines]
    assert not bad, found(bad)


def test_settings_import_no_torch() -> None:
    code = "import sys, flagscale_vla.config.schema as s; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert not [file for file in sources(f"{PACKAGE}/config") for _, name in imports(file) if name.startswith("torch")]


def calls(file: Path) -> Iterator[ast.Call]:
    """Every call in a file."""
    return (node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call))


def test_no_getattr_with_a_default() -> None:
    bad = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file in SHIPPED
        for call in calls(file)
        if isinstance(call.func, ast.Name) and call.func.id == "getattr" and len(call.args) > 2
    ]
    assert not bad, found(bad)


def test_nothing_loads_code_from_data() -> None:
    """Weights, shards and tokenizers are data: no pickle, and no switch that would let one in."""
    switches = {("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True)}
    bad = [f"{file.relative_to(ROOT)}:{line}" for file in SHIPPED for line, name in imports(file) if name == "pickle"]
    bad += [
        f"{file.relative_to(ROOT)}:{call.lineno}: {keyword.arg}"
        for file in SHIPPED
        for call in calls(file)
        for keyword in call.keywords
        if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in switches
    ]
    assert not bad, found(bad)


def is_blanket(handler: ast.ExceptHandler) -> bool:
    """Whether an `except` takes every error: with no type, or `Exception`, or `BaseException`."""
    names = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} if handler.type else {""}
    return bool(names & {"", "Exception", "BaseException"})


def test_no_error_is_swallowed() -> None:
    bad = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in SHIPPED
        if room_of(name_of(file)) not in SWALLOWS_ERRORS
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.ExceptHandler) and is_blanket(node)
    ]
    assert not bad, found(bad)


def test_files_stay_small_and_named() -> None:
    files = SHIPPED + sources("tests")
    long = [str(file.relative_to(ROOT)) for file in files if len(file.read_text().splitlines()) >= LONGEST]
    assert not long, found(long)
    vague = [
        str(file.relative_to(ROOT))
        for file in PACKAGED
        if {"utils", "common", "helpers", "misc"} & set(file.with_suffix("").parts)
    ]
    assert not vague, found(vague)
