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

ROOT = Path(__file__).parents[2]
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


EXECUTING = {"execute", "executemany", "execute_fetchall", "execute_insert"}

# Where a statement comes as a parameter: the function, the parameter, and its place in a call. Each
# caller is held to hand in a constant of queries.py, or what it was handed in itself.
HANDED_ON = {
    ("store", "_rows"): ("query", 1),
    ("store", "_change"): ("query", 1),
    ("store", "_count"): ("query", 1),
    ("transactions", "_begin"): ("begin", 2),
    ("transactions", "transaction"): ("begin", None),  # by name only
}
# The one that is no constant of queries.py: it comes from a .sql file of the package, and
# split_script, which makes it, is handed nothing else.
FROM_FILES = {("migrations", "_run_script"): "statement"}


def unbound(module: str, tree: ast.Module) -> Iterator[str]:
    """Yield each place where what is executed may be anything but a constant of queries.py."""
    for function in [*functions(tree), tree]:
        for node in own_nodes(function):
            if isinstance(node, ast.Attribute) and node.attr == "executescript":
                yield ast.unparse(node)
            elif isinstance(node, ast.Call):
                yield from unbound_call(module, function, node)
        called = {id(node.func) for node in own_nodes(function) if isinstance(node, ast.Call)}
        for node in own_nodes(function):
            if (
                isinstance(node, ast.Attribute)
                and node.attr in EXECUTING
                and id(node) not in called
            ):
                yield f"{ast.unparse(node)} under another name"


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return all functions of a module."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, or module, but for those of the functions in it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from own_nodes(node)


def unbound_call(module: str, function: ast.AST, call: ast.Call) -> Iterator[str]:
    """Yield the call if it executes, or hands on, what may be anything."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    handed: dict[str, tuple[str, int | None]] = {of: how for (_, of), how in HANDED_ON.items()}
    if name in EXECUTING:
        statements = call.args[:1] or [ast.Constant("nothing by place")]
    elif isinstance(call.func, ast.Name) and name in handed:
        parameter, place = handed[name]
        statements = [word.value for word in call.keywords if word.arg in (parameter, None)]
        if place is not None and len(call.args) > place:
            statements.append(call.args[place])
    else:
        return
    for statement in statements:
        if not is_constant(statement) and not is_handed_on(module, function, statement):
            yield ast.unparse(call)


def is_constant(node: ast.expr) -> bool:
    """Say whether it is a constant of queries.py, or the choice between two."""
    if isinstance(node, ast.IfExp):
        return is_constant(node.body) and is_constant(node.orelse)
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "queries"
        and node.attr.isupper()
    )


def is_handed_on(module: str, function: ast.AST, node: ast.expr) -> bool:
    """Say whether it is a parameter that is known, and that nothing else is assigned to."""
    if not isinstance(node, ast.Name):
        return False
    place = module, getattr(function, "name", "")
    assigned = [
        name
        for name in own_nodes(function)
        if isinstance(name, ast.Name) and name.id == node.id and isinstance(name.ctx, ast.Store)
    ]
    if place in FROM_FILES:
        return node.id == FROM_FILES[place] and len(assigned) == 1
    return place in HANDED_ON and node.id == HANDED_ON[place][0] and not assigned


@each_module
def test_every_statement_is_a_constant(module: str) -> None:
    """What is executed is named in queries.py, or comes from a file: no value is ever a part."""
    assert list(unbound(module, TREES[module])) == []


def test_statements_from_files_are_from_files() -> None:
    """What is split into statements is read from the package's own files, and is nothing else."""
    assert not list(calls(TREES["queries"], "split_script"))
    sources = [
        (module, ast.unparse(call.args[1]))
        for module, tree in TREES.items()
        for call in calls(tree, "_run_script")
    ]
    assert sorted(sources) == [
        ("migrations", "(files(__package__) / 'schema.sql').read_text()"),
        ("migrations", "missing[0].script"),
    ]
    scripts = [ast.unparse(call) for call in calls(TREES["migrations"], "Migration")]
    assert len(scripts) == 1
    assert "entry.read_text()" in scripts[0]
    assert [module for module, tree in TREES.items() if [*calls(tree, "split_script")]] == [
        "migrations"
    ]


@pytest.mark.parametrize(
    "source",
    [
        'c.execute(f"DELETE FROM sessions WHERE id = {x}")',
        'c.execute("DELETE FROM sessions WHERE id = %s" % x)',
        'c.execute("DELETE FROM sessions WHERE id = " + x)',
        'c.execute("DELETE FROM sessions WHERE id = {}".format(x))',
        "c.execute(queries.DELETE_SESSION + x)",
        "c.execute(queries.DELETE_SESSION.replace(':id', x))",
        "c.execute(queries.DELETE_SESSION if x else x)",
        "c.execute(getattr(queries, x))",
        "c.execute(queries._by_name[x])",
        "statement = queries.DELETE_SESSION + x\n    c.execute(statement)",
        "query = x\n    c.execute(query)",
        "c.execute(*x)",
        "c.execute(sql=x)",
        "c.executemany(x, [])",
        "c.cursor().execute(x)",
        "c.executescript(queries.DELETE_SESSION)",
        "run = c.execute\n    run(x)",
        "_rows(c, queries.DELETE_SESSION + x, {})",
        "_rows(c, query=x)",
        "_change(c, **x)",
        "with transaction(c, begin=x): pass",
        "def _rows(c, query):\n        query += x\n        c.execute(query)",
        "(lambda: c.execute(x))()",
    ],
)
def test_a_statement_with_a_value_in_it_is_found(source: str) -> None:
    """Whatever way somebody puts one together, the test above would name it."""
    assert list(unbound("store", ast.parse(f"def f(c, x):\n    {source}")))
    for right in ("c.execute(queries.DELETE_SESSION, x)", "_rows(c, queries.DELETE_SESSION, x)"):
        assert not list(unbound("store", ast.parse(f"def f(c, x):\n    {right}")))


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
