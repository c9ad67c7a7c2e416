"""Expressions read, methods rewritten, and classes of modules that run them: made, found again, unmade."""

from __future__ import annotations

import ast
import builtins
import copy
import copyreg
import inspect
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, jit, nn

from slabnorm.surgery.fusion import call_sites
from slabnorm.surgery.fusion.call_sites import FUNCTIONS, METHODS, name_of_call
from slabnorm.surgery.fusion.method_source import NAMESPACE, method_of, tree_of

# What an expression says: the path of a module, an activation's call, a sum; and the two together.
#
#     A(N(x))    A(N(x) + r)    A(r + N(x))    N(x) + r    N(x).relu()
#
# N is a norm or a variable that holds one back, A an activation, as a module or a function.

Test = Callable[[str], bool]
_QUIET = (ast.Name, ast.Constant, type(None))


@dataclass
class Form:
    """An expression that takes up a source: activation(source + other).

    Attributes:
        source: the norm's call, or the variable that holds it back.
        call, function, rest: the activation's call, what is called, and its arguments after the first.
        name, module: the activation's name where it is a function; its path where it is a module.
        plus, other: what adds, and the residual; None: no sum.
        left: whether the source stands on the left of the sum.
    """

    source: ast.expr
    call: ast.Call | None = None
    function: ast.expr | None = None
    rest: tuple[ast.expr, ...] = ()
    name: str | None = None
    module: str | None = None
    plus: ast.expr | None = None
    other: ast.expr | None = None
    left: bool = True

    @property
    def quiet(self) -> bool:
        """Whether reading the residual runs no code."""
        return isinstance(self.other, _QUIET)


class MethodReader:
    """Reads the expressions of one method."""

    def __init__(self, function: FunctionType, is_norm: Test, is_activation: Test) -> None:
        code = function.__code__
        self.me = code.co_varnames[0] if code.co_argcount else ""
        self._is_norm, self._is_activation = is_norm, is_activation
        self._local = frozenset((*code.co_varnames, *code.co_cellvars))
        self._names = {**vars(builtins), **function.__globals__, **_free(function)}

    def form(self, node: ast.expr, is_source: Callable[[ast.expr], bool]) -> Form | None:
        """Return the form of an expression around a source; None if it has none."""
        outer = self._activation(node)
        inner, form = outer or (node, Form(node))
        if outer and is_source(inner):
            form.source = inner
            return form
        total = self._sum(inner)
        if total is None:
            return None
        form.plus, left, right, either = total
        if is_source(right) and either:
            form.source, form.other, form.left = right, left, False
        elif is_source(left):
            form.source, form.other = left, right
        else:
            return None
        return form

    def is_norm(self, node: ast.expr) -> bool:
        """Whether an expression calls a norm below `self` with one argument."""
        if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
            return False
        path = self.path(node.func)
        return path is not None and not isinstance(node.args[0], ast.Starred) and self._is_norm(path)

    def path(self, node: ast.AST) -> str | None:
        """Return the path of `self.blocks[0].norm` as `blocks.0.norm`."""
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == self.me:
                return node.attr
            head = self.path(node.value)
            return None if head is None else f"{head}.{node.attr}"
        if isinstance(node, ast.Subscript):
            head, key = self.path(node.value), _index(node.slice)
            return None if head is None or key is None else f"{head}.{key}"
        return None

    def _activation(self, node: ast.expr) -> tuple[ast.expr, Form] | None:
        """Return the operand of an activation's call, and the form that it begins."""
        if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
            return None
        func, form = node.func, Form(node, call=node, function=node.func)
        alone = len(node.args) == 1 and not node.keywords
        path = self.path(func)
        if path is not None:
            form.module = path
            return (node.args[0], form) if alone and self._is_activation(path) else None
        if isinstance(func, ast.Attribute) and func.attr in METHODS and self._known(func.value) is None:
            form.name, form.function = func.attr.rstrip("_"), ours("Tensor", func.attr)
            return None if node.args or node.keywords else (func.value, form)
        return self._function(node, form) if node.args else None

    def _function(self, node: ast.Call, form: Form) -> tuple[ast.expr, Form] | None:
        options = {str(k.arg): k.value for k in node.keywords}
        constants = [v.value for v in (*node.args[1:], *options.values()) if isinstance(v, ast.Constant)]
        function = self._known(node.func)
        known = any(function is f for f in FUNCTIONS)
        if not known or len(constants) != len(node.args) - 1 + len(node.keywords):
            return None
        positional = len(node.args) - 1
        given = dict(zip(options, constants[positional:], strict=True))
        form.name, form.rest = name_of_call(function, constants[:positional], given), tuple(node.args[1:])
        return (node.args[0], form) if form.name else None

    def _sum(self, node: ast.expr) -> tuple[ast.expr, ast.expr, ast.expr, bool] | None:
        """Return what adds, its operands, and whether the norm may be the right one."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return ours("plus"), node.left, node.right, True
        if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
            return None
        if node.keywords:
            return None
        function = self._known(node.func)
        if len(node.args) == 2 and (function is torch.add or function is operator.add):
            return node.func, node.args[0], node.args[1], True
        if len(node.args) == 2 and function is operator.iadd:  # changes its left operand
            return node.func, node.args[0], node.args[1], False
        func = node.func
        if len(node.args) != 1 or not isinstance(func, ast.Attribute) or func.attr not in ("add", "add_"):
            return None
        if function is not None or self.path(func) is not None:
            return None
        return ours("Tensor", func.attr), func.value, node.args[0], False

    def _known(self, node: ast.expr) -> Any:
        """Return what a global name, or an attribute of an imported module, stands for."""
        if isinstance(node, ast.Name):
            return None if node.id in self._local else self._names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._known(node.value)
            wanted = isinstance(owner, ModuleType) or owner is Tensor
            return inspect.getattr_static(owner, node.attr, None) if wanted else None
        return None


def ours(*names: str) -> ast.expr:
    """Return the expression of something in `sites`."""
    node: ast.expr = ast.Name(NAMESPACE, ast.Load())
    for name in names:
        node = ast.Attribute(node, name, ast.Load())
    return node


def _free(function: FunctionType) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # still empty
            continue
    return found


def _index(node: ast.expr) -> int | str | None:
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    node = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if not isinstance(node, ast.Constant) or type(node.value) not in (int, str):
        return None
    value: Any = node.value
    return -value if negative and isinstance(value, int) else value


# A method rewritten so that norms run together with what takes up their result.
#
#     A(N(x))                      ->   close(A, hold(N, x))                        in any expression
#     v = N(x) ... v = A(v)        ->   v = hold(N, x) ... v = close(A, v)          over statements
#     v = N(x) ... v += r; v = A(v)     the same with v = add(iplus, v, r) between
#
# The rewritten method means the same whatever N and A turn out to be when it runs: `call_sites.py` holds back
# only what it can run later. What is needed here is that nobody else sees what is held back: a chain over
# statements lies in one block, and its variable is read nowhere else before it gets a new value or the
# method returns.
#
# Statements in between, and residuals computed after the norm's place, run before the norm from now on. They
# are let pass only where the norm's input has just been made and has no name, by a module whose output is
# memory of its own (`hold` looks), as in `out = bn2(conv2(out)); identity = downsample(x); out += identity`.

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
        self.read = MethodReader(function, is_norm, is_activation)
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


# Classes of modules whose methods run norms together with what follows: made, found again, unmade.
#
# A rewritten module is its old object under a subclass of its own class, with the same name. Its methods are
# the class's, with the call sites of norms rewritten; everything else is inherited.


class Rewritten:
    """What rewritten modules have beside their class: the way back, and through pickle and deepcopy."""

    plain: ClassVar[type[nn.Module]]
    paths: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]]  # of norms, of activations

    def __init_subclass__(cls, **options: Any) -> None:
        """Keep a user's own `__init_subclass__`, such as a registry, from seeing the class."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the user's class, which pickle finds, and what to rewrite in it."""
        reduced = super().__reduce_ex__(protocol)
        if reduced[0] is copyreg.__newobj__ and reduced[1] == (type(self),):  # type: ignore[attr-defined]
            return (again, (self.plain, *self.paths), *reduced[2:])
        return reduced


def again(plain: type[nn.Module], norms: Iterable[str], activations: Iterable[str]) -> nn.Module:
    """Return an empty object of a rewritten class, as pickle and deepcopy fill it."""
    try:
        kind = rewritten(plain, tuple(norms), tuple(activations))
    except Exception:  # its source is not there, or another: the norms stay fast, unfused
        kind = plain
    return kind.__new__(kind)


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has, or had before it was rewritten."""
    return module.plain if isinstance(module, Rewritten) else type(module)


def rewritable(kind: type[nn.Module]) -> bool:
    """Whether a module of this class may be given a rewritten class."""
    if issubclass(kind, fx.GraphModule | jit.ScriptModule):
        return False  # their classes are made for one object, and made anew by their own methods
    return in_order(kind) or not kind.__module__.startswith("torch.")


def in_order(kind: type[nn.Module]) -> bool:
    """Whether a class runs its children one after the other, as nn.Sequential does."""
    return kind.forward is nn.Sequential.forward


_made: WeakValueDictionary[Any, type[nn.Module]] = WeakValueDictionary()


def rewritten(
    plain: type[nn.Module], norms: tuple[str, ...], activations: tuple[str, ...]
) -> type[nn.Module]:
    """Return the subclass of a class whose methods fuse at the paths given."""
    key = (plain, norms, activations)
    made = _made.get(key)
    if made is None:
        heads = frozenset(path.partition(".")[0] for path in norms)
        found = methods_of(plain, heads, norms.__contains__, activations.__contains__)
        methods = {name: new for name, new, _ in found}
        if in_order(plain):
            methods["forward"] = call_sites.in_order
        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
        own = {"plain": plain, "paths": (norms, activations)}
        metaclass: Any = type(plain)
        made = _made[key] = metaclass(plain.__name__, (Rewritten, plain), {**names, **own, **methods})
    return made


def methods_of(
    plain: type[nn.Module], heads: frozenset[str], is_norm: Test, is_activation: Test
) -> list[tuple[str, Callable[..., Any], list[Site]]]:
    """Return the methods of a class that change when norms are fused, rewritten, each with its sites.

    A norm's path begins with one of `heads`. Methods that name none of them are not read: a model of
    transformers inherits a hundred from files of thousands of lines.
    """
    found = []
    for name, function in _methods(plain).items():
        if heads.isdisjoint(function.__code__.co_names):
            continue
        tree = copy.deepcopy(tree_of(function))
        if tree is None:
            continue
        rewriter = Rewriter(function, is_norm, is_activation)
        rewriter.rewrite(tree)
        method = method_of(tree, function, call_sites) if rewriter.sites else None
        if method is not None:
            found.append((name, method, rewriter.sites))
    return found


def unreadable(plain: type[nn.Module]) -> bool:
    """Whether the forward of a class has no source that could be rewritten."""
    return not in_order(plain) and tree_of(_methods(plain).get("forward")) is None


def _methods(plain: type[nn.Module]) -> dict[str, FunctionType]:
    methods: dict[str, FunctionType] = {}
    seen: set[str] = set()
    for kind in plain.__mro__:
        if kind.__module__.startswith("torch."):
            continue
        for name, value in vars(kind).items():
            if name not in seen and isinstance(value, FunctionType):
                methods[name] = value
            seen.add(name)
    return methods
