"""What an expression says: the path of a module, an activation's call, a sum; and the two together.

    A(N(x))    A(N(x) + r)    A(r + N(x))    N(x) + r    N(x).relu()

N is a norm or a variable that holds one back, A an activation, as a module or a function.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor

from slabnorm.surgery.sites import FUNCTIONS, METHODS, name_of_call
from slabnorm.surgery.source import NAMESPACE

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


class Reader:
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
