"""JSON that all readers agree about: written in one form, and read without what the standard leaves open."""

from __future__ import annotations

import json
import math
from typing import Any


def write(plain: Any) -> str:
    """Return one line of ASCII: keys sorted, no spaces, every number with the digits that give it back.

    Raises:
        ValueError: NaN or infinity, which JSON does not have.
        TypeError: what is no JSON.
    """
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def read(text: str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: no JSON, a key given twice, NaN, infinity, or a number beyond float64.
        RecursionError: nested too deeply.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        if len(set(keys)) < len(keys):
            raise ValueError(f"a key twice in JSON: {', '.join(keys)[:200]}")
        return dict(found)

    def constant(name: str) -> Any:
        raise ValueError(f"{name} in JSON")

    def number(written: str) -> float:
        value = float(written)
        return value if math.isfinite(value) else constant(written)

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
