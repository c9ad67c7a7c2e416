"""What JavaScript computes is what the library computes: slabs, statistics, output, and words for a typo."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Page

import slabnorm as sn
from slabnorm.errors import SlabError
from slabnorm.notation import parse
from slabnorm.slab import plan
from tests.test_pattern import BROKEN

RNG = np.random.default_rng(0)
CASES = 200
EPS = (1e-5, 1e-3, 0.1)


def random_case() -> dict[str, Any]:
    """A valid pattern, a shape that fits it, sizes of its brackets, and what to compute with."""
    names = [
        str(name) for name in RNG.permutation(["n", "t", "h", "w", "g", "depth", "ü"])[: RNG.integers(1, 5)]
    ]
    names.insert(RNG.integers(len(names) + 1), "c")
    items, shape, sizes = [], [], {}
    while names:
        item = [names.pop(0) for _ in range(min(len(names), RNG.choice([1, 1, 1, 2, 3])))]
        parts = RNG.integers(1, 5, len(item)).tolist()
        items.append(item)
        shape.append(int(np.prod(parts)))
        sizes |= dict(
            list(zip(item, parts, strict=True))[:-1] if RNG.random() < 0.8 else zip(item, parts, strict=True)
        )
    if RNG.random() < 0.3:
        at, more = RNG.integers(len(items) + 1), RNG.integers(0, 3)
        items.insert(at, ["..."])
        shape[at:at] = RNG.integers(1, 4, more).tolist()
    flat = [name for item in items for name in item]
    kept = [name for name in RNG.permutation(flat).tolist() if RNG.random() < 0.45]
    right = list(kept)
    named = [name for name in kept if name != "..."]
    if len(named) > 1 and RNG.random() < 0.3:
        right = [f"({' '.join(named[:2])})", *(name for name in kept if name not in named[:2])]
    left = [f"({' '.join(item)})" if len(item) > 1 else item[0] for item in items]
    text = f"{' '.join(left)} -> {' '.join(right)}"
    scale = 10.0 ** RNG.integers(-3, 5)
    values = RNG.normal(RNG.choice([0.0, 3.0, -1e4]), 1, int(np.prod(shape))) * scale
    affines = plan(parse(text), parse(text).default_affine, tuple(shape), tuple(sizes.items())).affine.shape
    weight, bias = RNG.normal(1, 1, int(np.prod(affines))), RNG.normal(0, 1, int(np.prod(affines)))
    eps = float(RNG.choice(EPS))
    numbers = {"values": values.tolist(), "weight": weight.tolist(), "bias": bias.tolist(), "eps": eps}
    return {"text": text, "shape": shape, "sizes": sizes, "affine": affines, **numbers}


COMPUTE = """async (cases) => {
  const [{ parse }, norm] = await Promise.all([import("slabnorm/notation"), import("slabnorm/norm")]);
  return cases.map(({ text, shape, sizes, values, weight, bias, eps }) => {
    try {
      const bound = norm.plan(parse(text), shape, sizes);
      const found = norm.moments(values, bound);
      const y = norm.normalise(values, bound, found, { eps, weight, bias });
      const { mean, variance, count, least, most } = found;
      const lists = { of: bound.of, mean, variance, least, most, y };
      return { count, ...Object.fromEntries(Object.entries(lists).map(([name, list]) => [name, [...list]])) };
    } catch (error) {
      return { error: error.message };
    }
  });
}"""


@pytest.mark.usefixtures("in_plain_torch")
def test_the_browser_computes_what_the_library_computes(shared: Page) -> None:
    cases = [random_case() for _ in range(CASES)]
    computed = 0
    for case, found in zip(cases, shared.evaluate(COMPUTE, cases), strict=True):
        text, sizes = case["text"], case["sizes"]
        x = torch.tensor(case["values"], dtype=torch.float64).reshape(case["shape"])
        weight, bias = (
            torch.tensor(case[name], dtype=torch.float64).reshape(case["affine"])
            for name in ("weight", "bias")
        )
        if "error" in found:
            with pytest.raises(SlabError) as caught:
                sn.normalize(x, text, weight=weight, bias=bias, eps=case["eps"], **sizes)
            assert found["error"] == str(caught.value)
            continue
        y = sn.normalize(x, text, weight=weight, bias=bias, eps=case["eps"], **sizes)
        computed += 1
        moments = sn.moments(x, text, **sizes)
        slab = plan(parse(text), (), tuple(case["shape"]), tuple(sorted(sizes.items())))
        places = slab.kept.spread(torch.arange(slab.slabs).reshape(slab.kept.shape)).expand(slab.split)
        assert found["of"] == places.flatten().tolist(), text
        assert found["count"] == slab.count
        assert (found["least"], found["most"]) == (
            moments.min.flatten().tolist(),
            moments.max.flatten().tolist(),
        )
        spread = x.abs().max().item() if x.numel() else 1.0
        close(found["mean"], moments.mean, 1e-12, 1e-15 * spread)
        close(found["variance"], moments.var(0), 1e-12, 1e-30 * spread**2)
        close(found["y"], y, 1e-12, 1e-12)
    assert computed > 0.8 * CASES


def close(found: list[float], known: torch.Tensor, rtol: float, atol: float) -> None:
    wanted = known.flatten().double()
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), wanted, rtol=rtol, atol=atol)


MALFORMED = [text for text, *_ in BROKEN]
MALFORMED += [
    "n c h w >c", "n c h w - > c", "n,c -> c", "n c 'h -> c", 'n c "h -> c', "n c \\ -> c", "n [c] -> c",
    "n c -> c;", "n c\u200b -> c", "n c \u202e-> c", "n c \U0001f600 -> c", "n\xa0c \u0669 -> c",
    "n c -> C", "N c -> n", "n c -> cc", "batch channel -> chanel", "batch channels height -> hight",
    "batch time -> tiem", "batch time -> b", "b1 b2 b3 -> b4", "abcd abce -> abcf", "n c -> ...",
    "... -> n", "... -> ... ...", "(n c) -> (n q)", "(n c) h -> (n (c))", "n c h w", "->", " -> ", "->->",
    "n -> c -> ", "nc->n", "abc->abd", "abcc->c", "(nc)->c", "nchw->nchw", "nchw->x", "nchw->(n c)",
    "n c h w->(c", "n c h w->c)", "n c h w->()", "n c h w -> c 1", "n c h w -> 1c", "n 2c -> n",
    "n c-> -", "n c -> >", "n .c -> c", "n ....c -> n", "n ..... -> n", "n c ...... -> c",
    "naïve größe -> grösse", "x\u0301 y -> y", "名 前 -> 名前", "n c h w -> n c h w n", "(a b c) -> (a b d)",
    "(aa bb) -> (aa (bb", "n c h w  ->  q  r", "\tn\tc -> \tq", "n\nc -> d", "n c\n-> c c", "n c -> c @",
    "n c -> c#", "n\u2013c -> c", "n c → c", "n c \u2212> c", "n c => c -> c", "n c ->> c", "n c --> c",
    "n c <- c", "n*c -> c", "n c^2 -> c", "n c -> c/", "n & c -> c", "n c | h -> c", "n c -> ()",
    "(() n) -> n", ")n( -> n", "n (c h) w -> n (h) c)", "n c ...h... -> c", "n c -> c . . .",
    "height width -> heigth", "height width -> widht weight", "a_b a_c -> a_d", "_ __ -> ___",
    "Ab aB -> AB", "n n", "n (n) -> n", "n c -> (c c)", "n c -> n...", "n c... -> c d",
]  # fmt: skip
SIZED: list[tuple[str, list[int], dict[str, int]]] = [
    ("n (g c) h w -> n g", [2, 6, 4, 4], {"g": 4}),
    ("n (g c) h w -> n g", [2, 6, 4, 4], {}),
    ("n (g c) h w -> n g", [2, 6, 4, 4], {"g": 0}),
    ("n (g c) h w -> n g", [2, 6, 4, 4], {"G": 2}),
    ("n (g c) h w -> n g", [2, 6, 4, 4], {"g": 2, "c": 4}),
    ("n (g c) h w -> n g", [2, 6, 4], {"g": 2}),
    ("n (a b c) h w -> n a", [2, 6, 4, 4], {"a": 2}),
    ("n c h w -> c", [2, 6, 4, 4], {"g": 2}),
    ("n c h w -> c", [2, 6, 4, 4], {"c": 5}),
    ("n c h w -> c", [2, 6, 4, 4], {"channel": 5}),
    ("nchw ->", [2, 6, 4, 4], {}),
    ("n c -> c", [2, 6, 4, 4], {}),
    ("n c ... h w d -> c", [2, 6, 4, 4], {}),
    ("n -> n", [2, 6, 4, 4], {}),
    ("n c h w -> c", [1, 6, 1, 1], {}),
    ("n c h w -> c h w", [1, 6, 4, 4], {}),
    ("x -> x", [], {}),
    ("x y -> x", [7], {}),
    ("... -> ", [1], {"...": 2}),
]

COMPLAIN = """async (cases) => {
  const [{ parse }, norm] = await Promise.all([import("slabnorm/notation"), import("slabnorm/norm")]);
  return cases.map(([text, shape, sizes]) => {
    try {
      const pattern = parse(text);
      if (shape !== null) norm.checkSpread(norm.plan(pattern, shape, sizes));
      return null;
    } catch (error) {
      return [error.constructor.name, error.message];
    }
  });
}"""


def refused(text: str, shape: list[int] | None, sizes: dict[str, int]) -> list[str] | None:
    try:
        if shape is None:
            parse(text)
        else:
            sn.normalize(torch.zeros(shape, dtype=torch.float64), text, **sizes)
    except SlabError as error:
        return [type(error).__name__, str(error)]
    return None


@pytest.mark.usefixtures("in_plain_torch")
def test_a_typo_is_told_the_same(shared: Page) -> None:
    random = ["".join(RNG.choice(list("nchw gq()->.… 1*ß"), RNG.integers(1, 22))) for _ in range(600)]
    patterns = [random_case()["text"] for _ in range(200)]
    for text in patterns:  # one letter is wrong
        at = RNG.integers(len(text))
        random.append(text[:at] + RNG.choice(list("nchwg(). ->")) + text[at + 1 :])
    cases = [(text, None, {}) for text in MALFORMED + random + patterns] + SIZED
    known = [refused(*case) for case in cases]
    found = shared.evaluate(COMPLAIN, cases)
    for case, ours, theirs in zip(cases, known, found, strict=True):
        assert theirs == ours, case
    assert sum(one is not None for one in known[: len(MALFORMED)]) >= 100
    assert all(known[-len(SIZED) :])
