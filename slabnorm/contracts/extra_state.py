"""Plain values as a tensor of uint8 for a state_dict, which safetensors and torch.load take as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slabnorm.errors import ContractError
from slabnorm.inputs import record

VERSION = 1


def to_tensor(plain: dict[str, Any]) -> Tensor:
    """Return JSON's own types as a tensor of uint8."""
    text = record.write({"version": VERSION, **plain})
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def to_plain(state: Any, what: str) -> dict[str, Any]:
    """Return what `to_tensor` wrote.

    Raises:
        ContractError: it is damaged, or of another version; names `what`.
    """
    try:
        plain = record.read(bytes(state.cpu().to(torch.uint8).tolist()).decode())
        version = plain.pop("version")
        if version != VERSION:
            raise ValueError(f"it is of version {version!r:.40}, and this slabnorm reads {VERSION}")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = f"The extra state of {what} is damaged"
        raise ContractError(problem, f"{error}"[:300], "save the model again") from error
    found: dict[str, Any] = plain
    return found
