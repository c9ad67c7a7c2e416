"""The notation: what parses, what it means, and what a typo is told."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import slabnorm
from slabnorm.errors import PatternError, ShapeError
from slabnorm.notation import Pattern, parse


def test_parts() -> None:
    pattern = parse("n (g c) ... -> n g")
    assert pattern.left == (("n",), ("g", "c"), ("...",))
    assert pattern.right == (("n",), ("g",))
    assert not pattern.pools_samples
    assert pattern.default_affine == (("g", "c"),)
    assert parse("n c h w -> c").running == (("c",),)
    assert parse("n c h w -> n c").running == (("c",),)
    assert parse("(b t) c -> t c").pools_samples
    assert parse("n c->").right == ()
    assert parse("... c -> ...").sample == ("...",)


@pytest.mark.parametrize("text", ["n c h w -> c", "  n   c h w->c ", "n c h w\t->\nc"])
def test_space_has_no_meaning(text: str) -> None:
    assert parse(text).left == parse("n c h w -> c").left
    assert parse(text).right == (("c",),)


def test_parsed_once() -> None:
    assert parse("n c h w -> c") is parse("n c h w -> c")
    assert pickle.loads(pickle.dumps(parse("n c -> c"))) is parse("n c -> c")


# text, the marked place, what the message says
BROKEN = [
    ("n c h w", 7, "has no arrow"),
    ("", 0, "has no arrow"),
    ("n c => c", 4, "'=' has no meaning"),
    ("n c - c", 4, "write '->'"),
    ("n c -> c -> n", 9, "two arrows"),
    ("-> c", 0, "names no axes left of '->'"),
    ("n c h w -> q", 11, "not on the left"),
    ("n C h w -> c", 11, "did you mean 'C'"),
    ("n (grp c) h -> n grop", 17, "did you mean 'grp'"),
    ("n c n -> c", 4, "named twice"),
    ("n c -> c c", 9, "named twice"),
    ("... c ... -> c", 6, "leave one '...'"),
    ("nchw->c", 0, 'put spaces between them: "n c h w -> c"'),
    (" nc -> nc n ", 1, 'put spaces between them: "n c -> n c n"'),
    ("images -> c", 10, "'c' on the right"),
    ("n (g c -> n", 2, "never closed"),
    ("n g c) -> n", 5, "never opened"),
    ("n ((g c)) -> n", 3, "within a bracket"),
    ("n () c -> n", 2, "is empty"),
    ("n (c ...) -> n", 5, "in a bracket"),
    ("n .. -> n", 2, "three dots"),
    ("n … -> n", 2, "three dots"),
    ("n 3 -> n", 2, "begin with a digit"),
    ("n c* -> c", 3, "no meaning"),
    ("n (g c) -> (g q)", 14, "not on the left"),
]


@pytest.mark.parametrize(("text", "at", "says"), BROKEN)
def test_a_typo_is_marked(text: str, at: int, says: str) -> None:
    with pytest.raises(PatternError, match=r"fix:") as caught:
        parse(text)
    message = str(caught.value)
    assert says in message
    quoted, marks = message.splitlines()[1:3]
    assert quoted == f"  got: {text}".rstrip() or quoted == f"  got: {text}"
    assert marks.index("^") - len("  got: ") == at
    assert "fix:" in message


@pytest.mark.parametrize("wrong", [None, 3, ("n c", "c")])
def test_not_text(wrong: object) -> None:
    with pytest.raises(PatternError, match="must be text"):
        parse(wrong)  # type: ignore[arg-type]


def test_bind() -> None:
    assert parse("n (g c) ... -> n").bind((2, 12, 3, 4), {"g": 3}) == (
        ("n", 2), ("g", 3), ("c", 4), ("...0", 3), ("...1", 4)
    )  # fmt: skip
    assert parse("n c ... -> c").bind((2, 3), {}) == (("n", 2), ("c", 3))


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes", "kind", "says"),
    [
        ("n c h w -> c", (2, 3, 4), {}, ShapeError, "names 4 axes, but the tensor has 3"),
        ("n c ... -> c", (2,), {}, ShapeError, "at least 2 axes"),
        ("nchw ->", (2, 3, 4, 4), {}, ShapeError, 'spaces between the axes: "n c h w ->"'),
        ("n (g c) -> n", (2, 7), {"g": 3}, ShapeError, "cannot be split with g=3"),
        ("n (g c) -> n", (2, 6), {"g": 2, "c": 4}, ShapeError, "but g=2, c=4 was given, which makes 8"),
        ("n c -> n", (2, 6), {"c": 5}, ShapeError, r"Axis 1 \(`c`\) has size 6, but c=5 was given"),
        ("n (g c) -> n", (2, 6), {}, PatternError, "all sizes but one"),
        ("n (g c) -> n", (2, 6), {"g": 0}, PatternError, "positive integer"),
        ("n (g c) -> n", (2, 6), {"g": 2.0}, PatternError, "positive integer"),
        ("n (g c) -> n", (2, 6), {"G": 2}, PatternError, "did you mean 'g'"),
    ],
)
def test_sizes_that_do_not_fit(
    pattern: str, shape: tuple[int, ...], sizes: dict[str, int], kind: type[Exception], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        parse(pattern).bind(shape, sizes)
    assert pattern in str(caught.value)


def test_affine() -> None:
    pattern = parse("n (g c) h w -> n g")
    assert pattern.affine(None) == (("g", "c"),)
    assert pattern.affine("c h w") == (("c",), ("h",), ("w",))
    assert pattern.affine("(g c)") == (("g", "c"),)
    assert pattern.affine("") == ()
    for wrong in ("q", "...", "c ->", "(c", "c c"):
        with pytest.raises(PatternError):
            pattern.affine(wrong)


names = st.text(alphabet="abcxyz_", min_size=1, max_size=4)


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, list[list[str]], list[str]]:
    """A valid pattern's text, with what it should parse to."""
    flat = draw(st.lists(names, min_size=1, max_size=7, unique=True))
    items: list[list[str]] = []
    rest = list(flat)
    while rest:
        take = draw(st.integers(1, min(3, len(rest))))
        items.append(rest[:take])
        rest = rest[take:]
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), ["..."])
    kept = draw(st.lists(st.sampled_from(flat), unique=True))
    space = st.sampled_from([" ", "  ", "\t"])
    left = [f"({' '.join(item)})" if len(item) > 1 else item[0] for item in items]
    text = draw(space).join(left) + draw(st.sampled_from(["->", " -> "])) + draw(space).join(kept)
    return text, items, kept


@given(patterns())
def test_every_valid_pattern_parses(made: tuple[str, list[list[str]], list[str]]) -> None:
    text, items, kept = made
    pattern = parse(text)
    assert [list(item) for item in pattern.left] == items
    assert [item[0] for item in pattern.right] == kept
    assert pattern.pools_samples == (not set(items[0]) <= set(kept))


@given(st.text(alphabet="nc gh()->.… 1*", max_size=20))
def test_any_text_parses_or_is_told_why(text: str) -> None:
    try:
        assert isinstance(parse(text), Pattern)
    except PatternError as caught:
        error = caught
    else:
        return
    assert error.problem
    assert error.fix
    assert error.got.startswith(text)


@given(patterns(), st.data())
def test_bind_splits_sizes_exactly(made: tuple[str, list[list[str]], list[str]], data: st.DataObject) -> None:
    text, items, _ = made
    sizes, shape = {}, []
    for item in items:
        if item == ["..."]:
            shape.extend(data.draw(st.lists(st.integers(1, 5), max_size=3)))
            continue
        chosen = {name: data.draw(st.integers(1, 5)) for name in item}
        hidden = data.draw(st.sampled_from(item))
        sizes.update({name: size for name, size in chosen.items() if name != hidden})
        product = 1
        for size in chosen.values():
            product *= size
        shape.append(product)
    bound = parse(text).bind(tuple(shape), sizes)
    total = 1
    for name, size in bound:
        total *= size
        assert sizes.get(name, size) == size
    assert total == math.prod(shape)


def test_the_notation_needs_no_torch() -> None:
    code = (
        "import importlib.util, sys\n"
        f"import types; package = types.ModuleType('slabnorm'); package.__path__ = {slabnorm.__path__!r}\n"
        "sys.modules['slabnorm'] = package\n"
        "import slabnorm.notation\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
