# SPDX-License-Identifier: MIT
"""The rules of the package that no single function can hold.

All but the last test read the source, as text or as a syntax tree, and import nothing.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sessionstore"

# A module imports only from those above it.
LAYERS = [
    "errors",
    "queries",
    "times",
    "models",
    "arguments",
    "cache",
    "concurrency",
    "jobs",
    "files",
    "coherence",
    "transactions",
    "adoption",
    "migrations",
    "preparation",
    "wal",
    "database",
    "writer",
    "store",
    "reader",
    "sweeper",
    "ending",
    "lifecycle",
    "manager",
    "__init__",
]
# The command line stands on top; the package never imports it.
FRONT = ["demo", "terminal", "usage", "cli", "__main__"]

ORDER = [*LAYERS, *FRONT]
PATHS = sorted(PACKAGE.rglob("*.py"))
TREES = {path.stem: ast.parse(path.read_text()) for path in PATHS}
TEXT_FILES = sorted(
    path
    for path in [*PACKAGE.rglob("*"), *(ROOT / "tests").rglob("*")]
    if path.suffix in (".py", ".sql") and path.stat().st_size
)

SQL = re.compile(
    r"\s*(ALTER|ANALYZE|ATTACH|BEGIN|COMMIT|CREATE|DELETE|DETACH|DROP|EXPLAIN|INSERT|PRAGMA|REINDEX"
    r"|RELEASE|REPLACE|ROLLBACK|SAVEPOINT|SELECT|UPDATE|VACUUM|VALUES|WITH)\b"
)

each_module = pytest.mark.parametrize("module", TREES)


def imports(module: str) -> Iterator[tuple[int, str]]:
    """Yield the level and the first name of all that a module imports, wherever it does so."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.level, alias.name if alias.name in TREES else "__init__"


def docstrings(tree: ast.Module) -> set[int]:
    """Return the identities of the nodes that are docstrings."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if node.body and isinstance(node.body[0], ast.Expr)
    }


def calls(tree: ast.Module, *names: str) -> Iterator[ast.Call]:
    """Yield the calls of functions or methods with one of these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = (
                node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
            )
            if name in names:
                yield node


def test_every_module_has_its_layer() -> None:
    """Each module of the package is in the list of layers, and each layer is there."""
    assert [path.stem for path in PATHS if path.parent != PACKAGE] == []
    assert set(LAYERS) <= set(TREES)
    assert set(TREES) <= set(ORDER)


@each_module
def test_module_imports_only_from_above(module: str) -> None:
    """A module imports only modules that stand above it in the list."""
    above = ORDER[: ORDER.index(module)]
    assert [name for level, name in imports(module) if level and name not in above] == []


@each_module
def test_imports_within_the_package_are_relative(module: str) -> None:
    """A module names its neighbours with one dot and never by the package's name."""
    assert {level for level, _ in imports(module)} <= {0, 1}
    assert (0, PACKAGE.name) not in set(imports(module))


@each_module
def test_imports_from_outside_are_few(module: str) -> None:
    """A module imports the standard library, and only database.py imports aiosqlite."""
    outside = {name for level, name in imports(module) if level == 0} - sys.stdlib_module_names
    assert outside == ({"aiosqlite"} if module == "database" else set())


@each_module
def test_sql_stands_only_in_queries(module: str) -> None:
    """No other module than queries.py has a text that begins like SQL."""
    tree = TREES[module]
    without = docstrings(tree)
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if SQL.match(node.value) and id(node) not in without
    ]
    assert bool(found) == (module == "queries"), found


@each_module
def test_no_statement_is_put_together(module: str) -> None:
    """What is executed is a name, never a text that is made on the spot, and never a script."""
    tree = TREES[module]
    assert not list(calls(tree, "executescript"))
    for call in calls(tree, "execute", "executemany", "execute_fetchall", "execute_insert"):
        made = ast.JoinedStr | ast.BinOp | ast.Call | ast.Constant | ast.Subscript
        assert call.args, ast.unparse(call)
        assert not isinstance(call.args[0], ast.Starred), ast.unparse(call)
        assert not [node for node in ast.walk(call.args[0]) if isinstance(node, made)], ast.unparse(
            call
        )


def test_queries_are_put_together_of_constants_only() -> None:
    """In queries.py only names in upper case stand in braces, and nothing else makes a text."""
    tree = TREES["queries"]
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Call | ast.BinOp | ast.FunctionDef | ast.Import), (
            ast.unparse(node)
        )
        if isinstance(node, ast.FormattedValue):
            assert isinstance(node.value, ast.Name), ast.unparse(node)
            assert node.value.id.isupper()
            assert node.format_spec is None
            assert node.conversion == -1


@each_module
def test_only_the_command_line_prints(module: str) -> None:
    """The package logs; only what a person calls in a terminal prints."""
    assert module in FRONT or not list(calls(TREES[module], "print"))


@each_module
def test_module_states_its_rules(module: str) -> None:
    """A module begins with a docstring."""
    assert ast.get_docstring(TREES[module])


@each_module
def test_module_is_short(module: str) -> None:
    """A module can be read in one sitting: it has at most 300 lines."""
    assert len((PACKAGE / f"{module}.py").read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", TEXT_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_begins_with_its_license(path: Path) -> None:
    """Each file of code says its license in the first line, wherever it is copied."""
    comment = "--" if path.suffix == ".sql" else "#"
    assert path.read_text().startswith(f"{comment} SPDX-License-Identifier: MIT\n")


def test_package_is_a_whole_copy() -> None:
    """The data files are in the package, and the ones at the top only point there."""
    assert (PACKAGE / "py.typed").is_file()
    for name in ("schema.sql", "migrations"):
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).readlink() == Path("sessionstore") / name
        assert (ROOT / name).exists()
    assert [path.name for path in (PACKAGE / "migrations").iterdir() if path.suffix != ".sql"] == []
    for path in (PACKAGE / "migrations").iterdir():
        assert re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", path.name)


def test_package_loads_nothing_but_aiosqlite() -> None:
    """Importing the package loads the standard library, aiosqlite, and no command line."""
    script = (
        "import json, sys; before = set(sys.modules); import sessionstore;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = json.loads(child.stdout)
    packages = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    assert packages == {"sessionstore", "aiosqlite"}
    assert not [name for name in FRONT if f"sessionstore.{name}" in loaded]
    assert {f"sessionstore.{name}" for name in LAYERS if name != "__init__"} <= set(loaded)
