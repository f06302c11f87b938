# SPDX-License-Identifier: MIT
"""The rules of the package that no single function can hold.

1. The root knows no engine: no SQL, no sqlite3, no aiosqlite, no path of a file. Only store.py
   names the engines, in one function that imports them when they are asked for.
2. An engine imports from the root and from itself, never from another engine.
3. The command line uses public names only, and nothing else imports it: it may be deleted.
4. SQL text stands in queries.py and in *.sql only; no value is ever part of a statement.

All but the last tests read the source, as text or as a syntax tree, and import nothing.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sessionstore"

ENGINES = {"sqlite", "postgres"}
FRONTS = {"cli", "web"}  # what may be deleted
START = "__main__"  # of the command line

TREES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text("utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}
each_module = pytest.mark.parametrize("module", TREES)

SQL = re.compile(
    r"\s*(ALTER|ANALYZE|ATTACH|BEGIN|COMMIT|CREATE|DELETE|DETACH|DROP|EXPLAIN|INSERT|PRAGMA|REINDEX"
    r"|RELEASE|REPLACE|ROLLBACK|SAVEPOINT|SELECT|UPDATE|VACUUM|VALUES|WITH)\b"
)

FunctionDef = ast.FunctionDef | ast.AsyncFunctionDef


class Import(NamedTuple):
    """A name that a module imports."""

    level: int  # the dots before it
    module: str  # as it is written; "" if there are only dots
    name: str  # what is imported from it; "" for the module itself


def folder_of(module: str) -> str:
    """Return the folder of a module; that of the root is ""."""
    return module.rpartition(".")[0]


def imports(tree: ast.AST) -> Iterator[Import]:
    """Yield all that a module imports, wherever it does so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(0, alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(node.level, node.module or "", alias.name)


def targets(module: str) -> set[str]:
    """Return the modules of the package that a module imports from, or names of the root."""
    found = set()
    for each in imports(TREES[module]):
        if each.level:
            home = module.split(".")[: -each.level]
            path = [*home, *each.module.split(".")] if each.module else [*home, each.name]
            found.add(".".join(path))
    return found


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    """Yield the calls of functions or methods with one of these names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called_name(node) in names:
            yield node


def called_name(call: ast.Call) -> str:
    """Return the last part of the name of what is called."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)


# -- Who imports what ------------------------------------------------------------------------------


def test_every_folder_has_its_place() -> None:
    """A folder of the package is an engine, or a front that may be deleted."""
    folders = {folder_of(module) for module in TREES} - {""}
    assert folders <= ENGINES | FRONTS
    assert "sqlite" in folders


@each_module
def test_imports_within_the_package_are_relative(module: str) -> None:
    """A vendored package has another name, so that it never imports itself by this one."""
    names = {each.module.split(".")[0] for each in imports(TREES[module]) if each.level == 0}
    assert PACKAGE.name not in names
    assert targets(module) <= {*TREES, *{folder_of(each) for each in TREES}, *names_of_init()}


def names_of_init() -> set[str]:
    """Return the names that the package itself has."""
    return {each.name for each in imports(TREES["__init__"])} | {"__version__"}


@each_module
def test_imports_from_outside_are_few(module: str) -> None:
    """Beside the standard library there is aiosqlite, which one module knows."""
    names = {each.module.split(".")[0] for each in imports(TREES[module]) if each.level == 0}
    expected = {"aiosqlite"} if module == "sqlite.connection" else set()
    assert names - sys.stdlib_module_names == expected


@pytest.mark.parametrize("module", [each for each in TREES if not folder_of(each)])
def test_the_root_knows_no_engine(module: str) -> None:
    """Neither by a library of its own, nor by the paths of its files, nor by a module of its."""
    tree = TREES[module]
    libraries = {each.module.split(".")[0] for each in imports(tree) if each.level == 0}
    assert libraries & {"fcntl", "mmap", "pathlib", "shutil", "sqlite3", "tempfile"} == set()
    assert {each.name for each in imports(tree) if each.module == "os"} <= {"PathLike", ""}
    assert {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os"
    } <= {"urandom"}
    assert not list(calls(tree, "open")) or module == "manager"  # which opens a store
    engines = {target for target in targets(module) if target.split(".")[0] in ENGINES}
    assert bool(engines) == (module == "store")


def test_an_engine_is_imported_when_it_is_asked_for() -> None:
    """In one function of store.py, so that who uses one engine needs no library of another."""
    tree = TREES["store"]
    at_work = [
        function.name
        for function in functions(tree)
        if any(each.module.split(".")[0] in ENGINES for each in imports(function) if each.level)
    ]
    assert len(at_work) == 1
    at_import = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [node.module for node in at_import if (node.module or "") in ENGINES]


@pytest.mark.parametrize("module", [each for each in TREES if folder_of(each) in ENGINES])
def test_an_engine_imports_from_the_root_and_from_itself(module: str) -> None:
    """Never from another engine, nor from what may be deleted."""
    others = (ENGINES | FRONTS) - {folder_of(module)}
    assert not [target for target in targets(module) if target.split(".")[0] in others]


@pytest.mark.parametrize("module", [each for each in TREES if folder_of(each) in FRONTS])
def test_a_front_uses_public_names_only(module: str) -> None:
    """Those that the package exports, as any other project does."""
    (exported,) = (
        ast.literal_eval(node.value)
        for node in TREES["__init__"].body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    for each in imports(TREES[module]):
        assert each.level < 2 or each.module == "", each
        assert each.level < 2 or each.name in {*exported, "__version__"}, each


@each_module
def test_nothing_imports_a_front(module: str) -> None:
    """But for itself, and what is run as `python -m`: whoever vendors the package may delete it."""
    if folder_of(module) not in FRONTS and module != START:
        assert not [target for target in targets(module) if target.split(".")[0] in FRONTS]


def test_the_start_of_the_command_line_is_nothing_else() -> None:
    """It imports the command line, which may be gone, and nothing else of the package."""
    assert {target.split(".")[0] for target in targets(START)} == {"cli"}
    assert not functions(TREES[START])


# -- SQL -------------------------------------------------------------------------------------------


def docstrings(tree: ast.Module) -> set[int]:
    """Return the identities of the nodes that are docstrings."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if node.body and isinstance(node.body[0], ast.Expr)
    }


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
    assert bool(found) == (module.endswith(".queries")), found


def functions(tree: ast.AST) -> list[FunctionDef]:
    """Return all functions of a module."""
    return [node for node in ast.walk(tree) if isinstance(node, FunctionDef)]


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function, or module, but for those of the functions in it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, FunctionDef):
            yield node
            yield from own_nodes(node)


# What executes a statement: its name, the name of the parameter, and its place in a call.
EXECUTING: dict[str, tuple[str, int]] = dict.fromkeys(
    ("execute", "executemany", "execute_fetchall", "execute_insert"), ("sql", 0)
)
# The one statement that is no constant: it comes from a file of the package, or from the host
# project's own table of objects. test_statements_from_files holds what its function is given.
FROM_FILES = ("sqlite.schema", "_run_script", "statement")


def unbound(trees: Mapping[str, ast.Module]) -> list[str]:
    """Return each place where what is executed may be anything but a constant of queries.py.

    A function that executes a parameter of its own executes, too: its callers are looked at.
    """
    executing = dict(EXECUTING)
    while True:
        found, known = [], dict(executing)
        for module, tree in trees.items():
            for function in [*functions(tree), tree]:
                found += [
                    ast.unparse(node)
                    for node in own_nodes(function)
                    if last_name(node) == "executescript"
                ]
                for place, statement in statements(function, executing):
                    parameter = is_parameter(function, statement)
                    if isinstance(function, FunctionDef) and parameter is not None:
                        executing[function.name] = parameter
                    elif not is_constant(function, statement) and not (
                        (module, getattr(function, "name", "")) == FROM_FILES[:2]
                        and ast.unparse(statement) == FROM_FILES[2]
                    ):
                        found.append(place)
        if executing == known:
            return found


def statements(
    function: ast.AST, executing: Mapping[str, tuple[str, int]]
) -> Iterator[tuple[str, ast.expr]]:
    """Yield what is executed, or handed to what executes it, and the text of the place."""
    named: set[int] = set()  # the mentions of what executes that are accounted for
    anything = ast.Constant("anything")
    for node in own_nodes(function):
        if not isinstance(node, ast.Call):
            continue
        named.add(id(node.func))
        if called_name(node) in executing:
            parameter, place = executing[called_name(node)]
            arguments = [word.value for word in node.keywords if word.arg == parameter]
            arguments += [anything for word in node.keywords if word.arg is None]
            arguments += node.args[place : place + 1]
            yield from ((ast.unparse(node), each) for each in arguments or [anything])
        for each, behind in pairwise([*node.args, anything]):
            if last_name(each) in executing and isinstance(behind, ast.Tuple):
                # Handed on with its arguments, all but the connection.
                named.add(id(each))
                place = executing[last_name(each)][1]
                yield ast.unparse(node), behind.elts[place - 1]
    # Functions inside that have the name of one that executes, but take no statement.
    others = {each.name for each in functions(function) if not each.args.args}
    for node in own_nodes(function):
        is_name = isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load)
        if isinstance(node, ast.Name) and node.id in others:
            continue
        if is_name and last_name(node) in executing and id(node) not in named:
            yield f"{ast.unparse(node)} under another name", anything


def last_name(node: ast.AST) -> str:
    """Return the last part of a name, or "" for what is none."""
    return getattr(node, "attr", "") or getattr(node, "id", "")


def is_parameter(function: ast.AST, node: ast.expr) -> tuple[str, int] | None:
    """Return the name of a parameter that nothing is assigned to, and its place in a call."""
    if not isinstance(function, FunctionDef) or not isinstance(node, ast.Name):
        return None
    names = [each.arg for each in [*function.args.posonlyargs, *function.args.args]]
    if node.id not in names or stores(function, node.id):
        return None
    return node.id, names.index(node.id) - (names[0] == "self")


def stores(function: ast.AST, name: str) -> list[ast.AST]:
    """Return the places where something is assigned to a name."""
    return [
        node
        for node in own_nodes(function)
        if isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load)
    ]


def is_constant(function: ast.AST, node: ast.expr) -> bool:
    """Say whether it is a constant of queries.py, a choice of them, or a name for one."""
    if isinstance(node, ast.IfExp):
        return is_constant(function, node.body) and is_constant(function, node.orelse)
    if isinstance(node, ast.Name):
        values = list(assigned(function, node.id))
        return 0 < len(values) == len(stores(function, node.id)) and all(
            is_constant(ast.Module([], []), value) for value in values
        )
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "queries"
        and node.attr.isupper()
    )


def assigned(function: ast.AST, name: str) -> Iterator[ast.expr]:
    """Yield what is assigned to a name by plain assignments."""
    for node in own_nodes(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                yield from (value for to, value in pairs if ast.unparse(to) == name)


def test_every_statement_is_a_constant() -> None:
    """What is executed is named in queries.py, or comes from a file: no value is ever a part."""
    engines = {name: tree for name, tree in TREES.items() if folder_of(name) in ENGINES}
    assert unbound(engines) == []
    for name in TREES.keys() - engines.keys():
        assert not list(calls(TREES[name], *EXECUTING)), name


def test_statements_from_files_are_from_files() -> None:
    """What is run as a script is one of the package's own files, or what the host project had."""
    schema = TREES["sqlite.schema"]
    module, runs, _ = FROM_FILES
    assert [name for name, tree in TREES.items() if [*calls(tree, runs)]] == [module]
    scripts = {ast.unparse(call.args[1]) for call in calls(schema, runs)}
    assert scripts == {"SCHEMA", "missing[0].script", "f'{statement};'"}
    (keeping,) = (each for each in functions(schema) if each.name == "_keeping_host_objects")
    assert "fetch_all(connection, queries.SELECT_HOST_OBJECTS)" in ast.unparse(keeping)
    assert "f'{statement};'" in ast.unparse(keeping)
    reading = sorted(ast.unparse(call) for call in calls(schema, "read_text"))
    assert len(reading) == 2
    assert re.fullmatch(r"\(files\(__package__.*\) / 'schema\.sql'\)\.read_text\(.*\)", reading[0])
    assert reading[1] == "entry.read_text('utf-8')"


@pytest.mark.parametrize(
    "source",
    [
        'c.execute(f"DELETE FROM sessions WHERE id = {x}")',
        'c.execute("DELETE FROM sessions WHERE id = %s" % x)',
        'c.execute("DELETE FROM sessions WHERE id = " + x)',
        'c.execute("DELETE FROM sessions WHERE id = {}".format(x))',
        "c.execute(queries.DELETE_SESSION + x)",
        "c.execute(queries.DELETE_SESSION.replace(':id', x))",
        "c.execute(queries.DELETE_SESSION if x else x.y)",
        "c.execute(getattr(queries, x))",
        "c.execute(queries._by_name[x])",
        "statement = queries.DELETE_SESSION + x\n    c.execute(statement)",
        "statement = queries.A\n    statement += x\n    c.execute(statement)",
        "for statement in x:\n        c.execute(statement)",
        "one, other = x\n    c.execute(one)",
        "query = x.y\n    c.execute(query)",
        "c.execute(*x)",
        "c.execute(sql=x.y)",
        "c.executemany(x.y, [])",
        "c.cursor().execute(x.y)",
        "c.executescript(queries.DELETE_SESSION)",
        "run = c.execute\n    run(x)",
        "fetch_all(c, queries.DELETE_SESSION + x, {})",
        "fetch_all(c, query=x.y)",
        "fetch_all(c, **x)",
        "run = fetch_all",
        "Read(fetch_all, (queries.DELETE_SESSION + x, {}))",
        "self.select(x.y, {})",
        "def g(c, query):\n        query += x\n        c.execute(query)",
        "def g(c, query):\n        c.execute(query)\n    g(c, x.y)",
        "def g(c, query):\n        fetch_all(c, query)\n    g(c, query=x + x)",
        "(lambda: c.execute(x.y))()",
    ],
)
def test_a_statement_with_a_value_in_it_is_found(source: str) -> None:
    """Whatever way somebody puts one together, the test above would name it."""
    helpers = """
def fetch_all(connection, query, parameters={}):
    return connection.execute(query, parameters)

class Store:
    async def select(self, query, parameters):
        return await self.submit(Read(fetch_all, (query, parameters)))
"""
    assert unbound({"sqlite.module": ast.parse(f"{helpers}\ndef f(c, x):\n    {source}")})
    for right in (
        "c.execute(queries.DELETE_SESSION, x)",
        "fetch_all(c, queries.DELETE_SESSION, x)",
        "one, other = queries.A, queries.B\n    fetch_all(c, one if x else other, x)",
        "self.select(queries.DELETE_SESSION, x)",
        "(lambda: c.execute(queries.BEGIN))()",
    ):
        assert not unbound({"sqlite.module": ast.parse(f"{helpers}\ndef f(c, x):\n    {right}")})


def test_queries_are_put_together_of_constants_only() -> None:
    """In queries.py only names in upper case stand in braces, and nothing else makes a text."""
    for node in ast.walk(TREES["sqlite.queries"]):
        assert not isinstance(node, ast.Call | ast.BinOp | ast.FunctionDef | ast.Import), (
            ast.unparse(node)
        )
        if isinstance(node, ast.FormattedValue):
            assert isinstance(node.value, ast.Name), ast.unparse(node)
            assert node.value.id.isupper()
            assert node.format_spec is None
            assert node.conversion == -1


# -- Every file ------------------------------------------------------------------------------------


@each_module
def test_only_the_command_line_prints(module: str) -> None:
    """The package logs; only what a person calls in a terminal prints."""
    assert folder_of(module) in FRONTS or not list(calls(TREES[module], "print"))


@each_module
def test_module_states_its_rules(module: str) -> None:
    """A module begins with a docstring."""
    assert ast.get_docstring(TREES[module])


def test_every_file_begins_with_its_license() -> None:
    """Each file of code says its license in the first line, wherever it is copied."""
    comments = {".py": "#", ".sql": "--"}
    without = [
        path.relative_to(ROOT)
        for path in [*PACKAGE.rglob("*"), *(ROOT / "tests").rglob("*")]
        if path.suffix in comments
        and not path.read_text("utf-8").startswith(
            f"{comments[path.suffix]} SPDX-License-Identifier: MIT\n"
        )
    ]
    assert without == []


def test_sql_files_are_ascii() -> None:
    """They are read whatever the encoding of the system is, and by any program."""
    files = list(PACKAGE.rglob("*.sql"))
    assert len(files) > 2
    assert [path for path in files if not path.read_bytes().isascii()] == []


def test_package_is_a_whole_copy() -> None:
    """The data files are in the package, and the ones at the top only point there."""
    assert (PACKAGE / "py.typed").is_file()
    for name in ("schema.sql", "migrations"):
        assert (ROOT / name).is_symlink()
        assert (ROOT / name).readlink() == Path("sessionstore") / "sqlite" / name
        assert (ROOT / name).exists()
    for path in (PACKAGE / "sqlite" / "migrations").iterdir():
        assert re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", path.name)


def test_package_is_installed_as_a_whole() -> None:
    """setup.cfg names each folder with modules in it, and each file that is none."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")
    }
    assert set(settings["options"]["packages"].split()) == packages
    patterns = settings["options.package_data"]["sessionstore"].split()
    covered = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file()}
    assert covered == {path for path in files if path.suffix not in (".py", ".pyc")}


# -- What is loaded --------------------------------------------------------------------------------


def loaded_by(script: str) -> set[str]:
    """Return the modules, but for those of the standard library, that a script loads."""
    script = (
        f"import json, sys; before = set(sys.modules); import sessionstore; {script};"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    child = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names: list[str] = json.loads(child.stdout)
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


def test_package_loads_what_is_asked_for() -> None:
    """Importing it loads the root alone; a path loads its engine, and nothing the command line."""
    root = {f"sessionstore.{module}" for module in TREES if not folder_of(module)}
    root = {*root, "sessionstore"} - {"sessionstore.__init__", "sessionstore.__main__"}
    assert loaded_by("pass") == root
    loaded = loaded_by("sessionstore.SessionManager(':memory:')")
    assert {name.split(".")[0] for name in loaded} == {"sessionstore", "aiosqlite"}
    assert "sessionstore.sqlite.store" in loaded
    assert not [name for name in loaded if name.startswith("sessionstore.cli")]
