"""The numbers of a run as JSON, written after every case, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FORMAT = 2
# Of `layers` and what follows, results lie where the system puts them; `reused` is the same in freed memory.
PARTS = ("layers", "small", "inference", "first_use", "training", "settings", "reused")


class Record:
    """One run: what it was measured on, and per part the measurements by name."""

    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        """Start an empty record.

        Args:
            path: the JSON file.
            conditions: machine, versions, threads and settings; a record goes on only under the same.
        """
        self.path = path
        self.content: dict[str, Any] = {
            "format": FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "conditions": conditions,
            **{part: {} for part in PARTS},
            "summary": {},
        }

    def resume(self) -> str | None:
        """Take over what the file has, or return why not; no file is an empty one."""
        if not self.path.exists():
            return None
        before = json.loads(self.path.read_text(encoding="utf-8"))
        mine = json.loads(json.dumps(self.content["conditions"]))
        if before.get("format") != FORMAT:
            return f"{self.path} has another format"
        theirs = before["conditions"]
        changed = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        if changed:
            return f"{self.path} was measured with other {' and '.join(sorted(changed))}"
        self.content = before
        return None

    def has(self, part: str, name: str) -> bool:
        """Whether a measurement is there, and nothing in it failed."""
        return name in self.content[part] and not self.content[part][name].get("failed")

    def add(self, part: str, name: str, measured: Any) -> None:
        """Add a measurement and write the file."""
        self.content[part][name] = measured
        self.write()

    def write(self) -> None:
        """Write the file whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self.path)
