"""How statistics were fitted: a plain record, which travels in the state_dict as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from slabnorm.errors import SlabError, StatisticsError
from slabnorm.inputs.features import Features
from slabnorm.inputs.schemes import Scheme, from_plain, to_plain
from slabnorm.notation import parse

# JSON as every program reads it alike: written in one form, and read without what the standard leaves open.


def write(plain: Any) -> str:
    """Return a value as one line of ASCII: sorted keys, no spaces, and enough digits to read numbers back.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON does not have.
        TypeError: the value cannot be written as JSON.
    """
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def read(text: str) -> Any:
    """Return the value that a JSON text holds.

    Raises:
        ValueError: the text is not JSON, or has a key twice, NaN, infinity, or a number beyond float64.
        RecursionError: the text is nested too deeply.
    """

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        if len(set(keys)) < len(keys):
            raise ValueError(f"the JSON has a key twice: {', '.join(keys)[:200]}")
        return dict(found)

    def constant(name: str) -> Any:
        raise ValueError(f"the JSON holds {name}")

    def number(written: str) -> float:
        value = float(written)
        return value if math.isfinite(value) else constant(written)

    return json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)


VERSION = 1


@dataclass(frozen=True)
class Record:
    """How an InputNorm was fitted.

    Attributes:
        scheme: how shift and scale follow from the statistics.
        pattern: the text of the pattern.
        sizes: the sizes of axes in brackets.
        sample: the shape of one sample; None for an axis along which samples differ in size.
        dtype: the dtype of the data, such as "uint8".
        split: the name of the split, as given to `fit`.
        leak: whether `fit` was given `leak=True`.
        nan: what `fit` did with NaN, "raise" or "omit".
        samples: the number of samples that were read.
        names: the names of the features where the data have names for them, such as a table's columns.
        reader: the library that decoded the data, with its version, where the values depend on it (images).
        skipped: the number of files, or parts of files, that could not be read and were left out.
        order: the order in which the axes of a sample were hashed; () for their own order.
        positions: the number of values of each feature that the quantiles come from; 0 for a scheme without.
        weights: "" if every sample counts once; "whole" or "real" if each counts by its weight; `samples`
            then counts those whose weight is not 0.
        content: the sum of the hashes of all samples modulo 2^64, in hexadecimal; other data have another.
    """

    scheme: Scheme
    pattern: str
    sample: tuple[int | None, ...]
    dtype: str
    split: str
    samples: int
    nan: str = "raise"
    leak: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    reader: str = ""
    skipped: int = 0
    order: tuple[int, ...] = ()
    positions: int = 0
    content: str = ""
    weights: str = ""

    @property
    def count_dtype(self) -> torch.dtype:
        """The dtype of counts: int64, or float64 where they are sums of real weights."""
        return torch.float64 if self.weights == "real" else torch.int64

    def features(self) -> Features:
        """Return where the features lie in a batch."""
        return Features.of(parse(self.pattern), self.sample, tuple(sorted(self.sizes.items())))

    def to_plain(self) -> dict[str, Any]:
        """Return the record as JSON's own types."""
        return {
            **asdict(self),
            "sample": list(self.sample),
            "names": list(self.names),
            "order": list(self.order),
            "scheme": to_plain(self.scheme),
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Record:
        """Return the record that `to_plain` wrote down.

        Raises:
            ValueError: a field is missing, unknown, of another type or out of range.
            SlabError: the scheme or the pattern is wrong.
        """
        if not isinstance(plain, dict) or plain.keys() != _TYPES.keys():
            raise ValueError(f"the record does not have the fields {', '.join(_TYPES)}")
        for name, kind in _TYPES.items():
            if type(plain[name]) is not kind:
                raise ValueError(f"{name} is {plain[name]!r:.80}, not of type {kind.__name__}")
        numbers = [plain["samples"], plain["skipped"], plain["positions"], *plain["sizes"].values()]
        numbers += [size for size in plain["sample"] if size is not None]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a number of samples, or a size, is not an integer of 0 or more")
        if len(plain["sample"]) > 64 or len(plain["pattern"]) > 4096:
            axes, length = len(plain["sample"]), len(plain["pattern"])
            raise ValueError(f"there are {axes} axes, or a pattern of {length} characters, which is too many")
        if not all(type(name) is str for name in plain["names"]):
            raise ValueError("a name is not a string")
        if plain["order"] and (
            not all(type(axis) is int for axis in plain["order"])
            or sorted(plain["order"]) != list(range(len(plain["sample"])))
        ):
            raise ValueError("order does not have every axis of a sample once")
        if plain["nan"] not in ("raise", "omit"):
            raise ValueError(f"nan is {plain['nan']!r:.80}, not raise or omit")
        if plain["weights"] not in ("", "whole", "real"):
            raise ValueError(f"weights is {plain['weights']!r:.80}, not whole or real")
        fields = {
            **plain,
            "scheme": from_plain(plain["scheme"]),
            "sample": tuple(plain["sample"]),
            "names": tuple(plain["names"]),
            "order": tuple(plain["order"]),
        }
        record = cls(**fields)
        shape = record.features().shape  # the pattern must fit the sample
        if record.names and len(record.names) != math.prod(shape):
            raise ValueError(f"there are {len(record.names)} names for features of shape {shape}")
        return record

    def to_tensor(self) -> Tensor:
        """Return the record as JSON in a uint8 tensor."""
        # A tensor, not a dict or a str: safetensors and torch.load(weights_only=True) take it as it is.
        text = json.dumps({"version": VERSION, **self.to_plain()}, sort_keys=True, allow_nan=False)
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    @classmethod
    def from_tensor(cls, tensor: Any) -> Record:
        """Return the record that `to_tensor` wrote.

        Raises:
            StatisticsError: the tensor is damaged, or of another version.
        """
        try:
            plain = json.loads(bytes(tensor.cpu().to(torch.uint8).tolist()).decode())
            version = plain.pop("version")
            if version != VERSION:
                raise ValueError(f"it is of version {version!r}, and this slabnorm reads {VERSION}")
            return cls.from_plain(plain)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError, SlabError) as error:
            problem = "The extra state of the InputNorm is damaged"
            raise StatisticsError(problem, f"{error}", "fit again") from error


_TYPES: dict[str, type] = dict.fromkeys(
    ("pattern", "dtype", "split", "nan", "reader", "content", "weights"), str
)
_TYPES |= dict.fromkeys(("samples", "skipped", "positions"), int)
_TYPES |= dict.fromkeys(("sample", "names", "order"), list) | {"scheme": dict, "sizes": dict, "leak": bool}
