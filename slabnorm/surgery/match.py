"""A method rewritten so that norms run together with what takes up their result.

    A(N(x))                      ->   close(A, hold(N, x))                        in any expression
    v = N(x) ... v = A(v)        ->   v = hold(N, x) ... v = close(A, v)          over statements
    v = N(x) ... v += r; v = A(v)     the same with v = add(iplus, v, r) between

The rewritten method means the same whatever N and A turn out to be when it runs: `sites.py` holds back only
what it can run later. What is needed here is that nobody else sees what is held back: a chain over statements
lies in one block, and its variable is read nowhere else before it gets a new value or the method returns.

Statements in between, and residuals computed after the norm's place, run before the norm from now on. They
are let pass only where the norm's input has just been made and has no name, by a module whose output is
memory of its own (`hold` looks), as in `out = bn2(conv2(out)); identity = downsample(x); out += identity`.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from slabnorm.surgery.forms import Form, Reader, Test, ours

_TRIES = (ast.Try, ast.TryStar, ast.Yield, ast.YieldFrom, ast.Await)  # others may see a method half done
_READS_FRAMES = frozenset(("locals", "vars", "eval", "exec", "dir"))


@dataclass(frozen=True)
class Site:
    """One place where a norm's result is taken up: by a function, a module at a path, or only a sum."""

    norm: str
    function: str | None = None
    module: str | None = None
    residual: bool = False


class Rewriter(ast.NodeTransformer):
    """Rewrites one method; `sites` lists what it found."""

    def __init__(self, function: FunctionType, is_norm: Test, is_activation: Test) -> None:
        code = function.__code__
        self.read = Reader(function, is_norm, is_activation)
        self.own = frozenset(code.co_varnames) - frozenset(code.co_cellvars)
        self.sites: list[Site] = []
        self.chains = False

    def rewrite(self, tree: ast.FunctionDef) -> None:
        """Rewrite a method in place."""
        nodes = list(ast.walk(tree))
        names = [node for node in nodes if isinstance(node, ast.Name)]
        me = self.read.me
        if not me or any(n.id == me and not isinstance(n.ctx, ast.Load) for n in names):
            return
        self.chains = not any(isinstance(n, _TRIES) for n in nodes)
        self.chains &= not any(n.id in _READS_FRAMES for n in names)
        self.counts: dict[str, int] = {}
        for n in names:
            self.counts[n.id] = self.counts.get(n.id, 0) + 1
        tree.body = self._block(tree.body)

    # ---- statements

    def _block(self, block: list[ast.stmt]) -> list[ast.stmt]:
        done: dict[int, ast.stmt] = {}
        for i in range(len(block)):
            if i not in done and self.chains:
                done.update(self._chain(block, i, done))
        return [done[i] if i in done else self.visit(statement) for i, statement in enumerate(block)]

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Visit a statement's blocks as blocks, everything else as expressions."""
        if isinstance(node, ast.With | ast.AsyncWith):  # it may swallow an exception between two statements
            before, self.chains = self.chains, False
            try:
                return super().generic_visit(node)
            finally:
                self.chains = before
        for field, value in ast.iter_fields(node):
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                setattr(node, field, self._block(value))
            elif isinstance(value, list):
                setattr(node, field, [self.visit(v) if isinstance(v, ast.AST) else v for v in value])
            elif isinstance(value, ast.AST):
                setattr(node, field, self.visit(value))
        return node

    def _skip(self, node: ast.AST) -> ast.AST:
        return node  # names mean something else in there

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_Lambda = _skip  # noqa: N815
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _skip  # noqa: N815

    def _chain(self, block: list[ast.stmt], first: int, taken: dict[int, ast.stmt]) -> dict[int, ast.stmt]:
        """Return the statements of a chain that starts here, rewritten, by their place in the block."""
        start = block[first]
        name = _target(start)
        if not isinstance(start, ast.Assign) or not self.read.is_norm(start.value):
            return {}
        links = self._links(block, first, taken)
        if not links:
            return {}
        between = [s for i, s in enumerate(block[: links[0][0]]) if i > first]
        others = [form.other for _, form in links if form.other is not None and not form.quiet]
        held = self._hold(start.value, [*between, *others], block[first - 1] if first else None, name)
        if held is None:
            return {}
        self._note(start.value, *(form for _, form in links))
        start.value = held
        done: dict[int, ast.stmt] = {first: start}
        for j, form in links:
            done[j] = _with_value(block[j], self._build(form, form.source, last=j == links[-1][0]))
        return done

    def _links(self, block: list[ast.stmt], first: int, taken: dict[int, ast.stmt]) -> list[tuple[int, Form]]:
        """Return the statements that take up a norm's result, in order: a sum, an activation, both."""
        links: list[tuple[int, Form]] = []
        at, name = first, _target(block[first])
        while name is not None and name in self.own:
            j = next((j for j in range(at + 1, len(block)) if _mentions(block[j], name)), None)
            if j is None or j in taken or (links and j > at + 1) or any(_jumps(s) for s in block[at + 1 : j]):
                break
            form = self._consumer(block[j], name)
            if form is None or not self._dies(block[j], name) or (links and form.plus):
                break
            links.append((j, form))
            at, name = j, _target(block[j]) if form.call is None else None
        return links

    def _consumer(self, statement: ast.stmt, name: str) -> Form | None:
        """Return how a statement takes up a variable, if it reads it once, as a form's source."""
        if isinstance(statement, ast.AugAssign):
            if (
                _target(statement) != name
                or not isinstance(statement.op, ast.Add)
                or _mentions(statement.value, name)
            ):
                return None
            source = ast.Name(name, ast.Load())
            return Form(source, plus=ours("iplus"), other=statement.value)
        if not isinstance(statement, ast.Assign | ast.Return) or statement.value is None:
            return None
        if isinstance(statement, ast.Assign) and _target(statement) is None:
            return None
        if sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(statement.value)) != 1:
            return None
        return self.read.form(statement.value, lambda node: isinstance(node, ast.Name) and node.id == name)

    def _dies(self, statement: ast.stmt, name: str) -> bool:
        """Whether nothing can read the variable's old value after this statement."""
        if isinstance(statement, ast.Return) or _target(statement) == name:
            return True
        return self.counts[name] == 2  # where it got its value, and here

    # ---- expressions

    def visit(self, node: ast.AST) -> Any:
        """Rewrite the outermost form first, then what it is made of."""
        if isinstance(node, ast.Call | ast.BinOp):
            form = self.read.form(node, self.read.is_norm)
            other = [form.other] if form and form.other and form.left and not form.quiet else []
            held = self._hold(form.source, other) if form else None
            if form and held is not None:
                self._note(form.source, form)
                return ast.copy_location(self._build(form, held, True), node)
        return super().visit(node)

    def _build(self, form: Form, source: ast.expr, last: bool) -> ast.expr:
        """Return the expression that takes up a held source."""
        value = source
        if form.plus is not None:
            assert form.other is not None
            other = self.visit(form.other)
            value = _call("add", form.plus, *((source, other) if form.left else (other, source)))
        if form.call is not None:
            assert form.function is not None
            made = _call("close", ast.Constant(form.name), form.function, value, *form.rest)
            made.keywords = form.call.keywords
            return made
        return _call("finish", value) if last else value

    def _hold(
        self,
        call: ast.expr,
        between: Sequence[ast.AST],
        before: ast.stmt | None = None,
        name: str | None = None,
    ) -> ast.expr | None:
        """Return the call of a norm, held back while `between` runs; None where that could change its result.

        It could not where a module has just made the norm's input and nothing else names it: as the argument
        itself, or in the statement before, under the name that the norm's result overwrites.
        """
        assert isinstance(call, ast.Call)
        made, source = call.args[0], tuple[ast.expr, ...]()
        if between:
            if isinstance(made, ast.Name) and isinstance(before, ast.Assign) and made.id == name:
                made = before.value if _target(before) == name else made
            if not isinstance(made, ast.Call) or self.read.path(made.func) is None:
                return None
            if any(self.read.path(n) == self.read.path(call.func) for b in between for n in ast.walk(b)):
                return (
                    None  # the norm itself: its running statistics would take their batches in another order
                )
            source = (made.func, ast.Constant(True))
        return _call("hold", call.func, self.visit(call.args[0]), *source)

    def _note(self, call: ast.expr, *forms: Form) -> None:
        assert isinstance(call, ast.Call)
        norm = self.read.path(call.func)
        assert norm is not None
        residual = any(form.plus is not None for form in forms)
        self.sites.append(Site(norm, forms[-1].name, forms[-1].module, residual))


def _target(statement: ast.stmt) -> str | None:
    """Return the one variable that a statement assigns."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target: ast.expr = statement.targets[0]
    elif isinstance(statement, ast.AugAssign):
        target = statement.target
    else:
        return None
    return target.id if isinstance(target, ast.Name) else None


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))


def _jumps(statement: ast.stmt) -> bool:
    return any(isinstance(n, ast.Break | ast.Continue) for n in ast.walk(statement))


def _with_value(statement: ast.stmt, value: ast.expr) -> ast.stmt:
    if isinstance(statement, ast.AugAssign):
        assert isinstance(statement.target, ast.Name)
        return ast.copy_location(ast.Assign([statement.target], value), statement)
    statement.value = value  # type: ignore[attr-defined]
    return statement


def _call(name: str, *args: ast.expr) -> ast.Call:
    return ast.Call(ours(name), list(args), [])
