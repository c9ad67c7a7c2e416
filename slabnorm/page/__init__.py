"""The page of `slabnorm lab`: one HTML file with everything in it, which a browser opens from the disk.

The rooms are plain JavaScript modules beside this file. Nothing is compiled: the page carries them in
an import map, as data: URLs, and its own policy forbids it to load anything else.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from slabnorm.errors import DataError
from slabnorm.extras import extra
from slabnorm.text import printable

FOLDER = Path(__file__).parent
PACKAGED = FOLDER / "study.json"
PREFIX = "slabnorm/"  # of the names that modules have in the import map
_IMPORT = re.compile(r"""((?:from|import)\s*\(?\s*["'])\./(?:vendor/)?([\w.]+?)\.js(["'])""")
_FIELDS = ("data", "claims", "sweep", "seeds")  # what a study must have


def check_packages() -> None:
    """Raise ExtraError unless the packages that make the page are installed. Called before the work."""
    for package, name in (("jinja2", "study"), ("sklearn", "study"), ("PIL", "images")):
        extra(package, "the page", f"'slabnorm[{name}]'")


def read_study(path: Path | None = None) -> dict[str, Any] | None:
    """Return the record of a study of claims, or None if none is given and none came with the package.

    Args:
        path: the JSON file that `slabnorm claims --json` writes, which may be compressed with gzip.

    Raises:
        DataError: the file cannot be read, or is not such a record.
    """
    if path is None:
        if not PACKAGED.exists():
            return None
        path = PACKAGED
    fix = "give the file that `slabnorm claims --json` has written"
    try:
        raw = path.read_bytes()
        study = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw, parse_constant=_refuse)
    except FileNotFoundError:
        raise DataError(f"No such file of claims: {printable(path)}", fix=fix) from None
    except (OSError, EOFError, ValueError, RecursionError) as error:
        problem = f"{printable(path)} cannot be read as the JSON of claims"
        raise DataError(problem, printable(error), fix) from None
    missing = [name for name in _FIELDS if not isinstance(study, dict) or name not in study]
    if missing:
        problem = f"{printable(path)} is JSON, but not the record of claims"
        raise DataError(problem, f"it has no {', '.join(missing)}", fix)
    for name in ("claims", "sweep"):
        if not isinstance(study[name], list):
            raise DataError(
                f"{printable(path)} is JSON, but not the record of claims", f"{name} is no list", fix
            )
    return dict(study)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def build(claims: dict[str, Any] | None) -> str:
    """Return the page as HTML.

    Args:
        claims: the record of a study, from `read_study`; without it, the rooms that show one say how.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from slabnorm.page.samples import samples

    environment = Environment(
        loader=PackageLoader("slabnorm.page", "."), autoescape=True, undefined=StrictUndefined
    )
    imports = json.dumps({"imports": {name: _data_url(code) for name, code in modules().items()}})
    start = f'import "{PREFIX}app";'
    return environment.get_template("index.html.jinja").render(
        study={"claims": claims, "samples": samples()},
        style=Markup(_read("vendor/uPlot.min.css") + _read("style.css") + _read("rooms.css")),
        imports=Markup(imports),
        start=Markup(start),
        scripts=Markup(f"'{_digest(imports)}' '{_digest(start)}'"),
    )


def modules() -> dict[str, str]:
    """Return the source of every module by its name in the import map.

    In the files a module imports "./kit.js", as editors and servers understand. A module in a data: URL
    has no neighbours, so there the name becomes "slabnorm/kit".
    """
    sources = {path.stem: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.js"))}
    for path in sorted((FOLDER / "vendor").glob("*.js")):
        # uPlot is a script that leaves one variable, and not a module.
        export = "\nexport default uPlot;\n" if path.name.startswith("uPlot") else ""
        sources[path.stem] = path.read_text("utf-8") + export
    return {PREFIX + name: _IMPORT.sub(rf"\1{PREFIX}\2\3", code) for name, code in sources.items()}


def _read(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def _data_url(code: str) -> str:
    return "data:text/javascript;base64," + base64.b64encode(code.encode()).decode()


def _digest(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
