"""A method's source as a tree, proved to be what runs, and a tree as a method again.

Rewriting the source keeps everything that a traced graph would freeze: branches on `self.training`, defaults,
loops, contexts, counters. Line numbers stay, so that tracebacks and breakpoints point at the user's file.
"""

from __future__ import annotations

import ast
import linecache
import types
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

NAMESPACE = "__slabnorm__"  # what a rewritten method calls `sites` by


def tree_of(function: Any) -> ast.FunctionDef | None:
    """Return a method's syntax tree; None unless compiling it gives the method's own bytecode.

    The file may have changed since it was imported, a decorator may have put another function in its
    place: what cannot be shown to be the source is not used.
    """
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return None
    parsed = _file_of(function)
    if parsed is None:
        return None
    tree = parsed.methods.get((function.__code__.co_firstlineno, function.__code__.co_name))
    if tree is None or tree.decorator_list:
        return None
    code = _compile(tree, function)
    return tree if code is not None and _same(code, function.__code__) else None


class _File(NamedTuple):
    """A source file: its functions by line and name, and the names that it imports at the top level."""

    methods: dict[tuple[int, str], ast.FunctionDef]
    imports: frozenset[str]


def _file_of(function: types.FunctionType) -> _File | None:
    lines = linecache.getlines(function.__code__.co_filename, function.__globals__)  # notebooks' cells too
    try:
        return _parse("".join(lines))
    except (SyntaxError, ValueError):
        return None


@lru_cache(maxsize=32)
def _parse(text: str) -> _File:
    module = ast.parse(text)
    methods = {(n.lineno, n.name): n for n in ast.walk(module) if isinstance(n, ast.FunctionDef)}
    return _File(methods, frozenset(_imports(module.body)))


def _imports(body: Sequence[ast.AST]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            yield from _imports(list(ast.iter_child_nodes(node)))


def method_of(
    tree: ast.FunctionDef, function: types.FunctionType, namespace: Any
) -> Callable[..., Any] | None:
    """Return a method like `function` that runs another tree, in which NAMESPACE is `namespace`."""
    code = _compile(tree, function)
    if code is None:
        return None
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells[NAMESPACE] = types.CellType(namespace)
    closure = tuple(cells[name] for name in code.co_freevars)
    made = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__, made.__dict__ = function.__kwdefaults__, dict(function.__dict__)
    made.__annotations__, made.__doc__ = function.__annotations__, function.__doc__
    made.__qualname__, made.__module__ = function.__qualname__, function.__module__
    return made


def _compile(tree: ast.FunctionDef, function: types.FunctionType) -> types.CodeType | None:
    """Compile a method inside a function whose arguments are its free variables, `__class__` among them."""
    code = function.__code__
    free = [ast.arg(name) for name in (*code.co_freevars, NAMESPACE)]
    no_args = ast.arguments(posonlyargs=[], args=free, kwonlyargs=[], kw_defaults=[], defaults=[])
    bare = ast.FunctionDef(tree.name, _without_defaults(tree.args), tree.body, [])
    factory = ast.FunctionDef("factory", no_args, [ast.copy_location(bare, tree)], [])
    ast.copy_location(factory, tree)
    if hasattr(ast, "TypeAlias"):  # Python 3.12: functions have type parameters
        bare.type_params, factory.type_params = [], []  # type: ignore[attr-defined]
    # How `F.relu(x)` compiles depends on whether the file imports F.
    parsed = _file_of(function)
    names = sorted(parsed.imports - {"*"}) if parsed else []
    imports: list[ast.stmt] = [ast.Import([ast.alias(name)], lineno=1, col_offset=0) for name in names]
    module = ast.fix_missing_locations(ast.Module([*imports, factory], []))
    flags = code.co_flags & _FUTURE
    try:
        outer = compile(module, code.co_filename, "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    for name in ("factory", tree.name):
        inner = [c for c in outer.co_consts if isinstance(c, types.CodeType) and c.co_name == name]
        if len(inner) != 1:
            return None
        outer = inner[0]
    return outer


def _without_defaults(args: ast.arguments) -> ast.arguments:
    # Defaults are values of the method object; evaluated anew they could be others.
    def bare(arg: ast.arg | None) -> ast.arg | None:
        return None if arg is None else ast.arg(arg.arg)

    return ast.arguments(
        posonlyargs=[ast.arg(a.arg) for a in args.posonlyargs],
        args=[ast.arg(a.arg) for a in args.args],
        vararg=bare(args.vararg),
        kwonlyargs=[ast.arg(a.arg) for a in args.kwonlyargs],
        kw_defaults=[None] * len(args.kwonlyargs),
        kwarg=bare(args.kwarg),
        defaults=[],
    )


_FUTURE = sum(
    getattr(__import__("__future__"), name).compiler_flag
    for name in __import__("__future__").all_feature_names
)

_FIELDS = (
    "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount", "co_kwonlyargcount",
    "co_posonlyargcount", "co_name", "co_exceptiontable",
)  # fmt: skip


def _same(a: types.CodeType, b: types.CodeType) -> bool:
    if any(getattr(a, field) != getattr(b, field) for field in _FIELDS) or len(a.co_consts) != len(
        b.co_consts
    ):
        return False
    for mine, theirs in zip(a.co_consts, b.co_consts, strict=True):
        if isinstance(mine, types.CodeType) and isinstance(theirs, types.CodeType):
            if not _same(mine, theirs):
                return False
        elif type(mine) is not type(theirs) or mine != theirs:
            return False
    return True
