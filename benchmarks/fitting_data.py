"""The files that `benchmarks.fitting` reads: random tables, and crops of scikit-learn's two photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = 64


def size(path: Path) -> int:
    """Return the bytes of a file, or of all in a folder."""
    return sum(
        file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()
    )


def table(rows: int) -> np.ndarray:
    """Return float32 values around different means."""
    random = np.random.default_rng(0)
    return random.standard_normal((rows, COLUMNS), np.float32) * 3 + np.arange(COLUMNS, dtype=np.float32)


def parquet(folder: Path, part: int) -> dict[str, Path]:
    """Write folders of Parquet files, four of each kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = {}
    for compression in ("none", "snappy"):
        path = folder / f"parquet-{compression}"
        path.mkdir()
        for number in range(4):
            values = table(800_000 // part)
            columns = {f"column {column}": values[:, column] for column in range(COLUMNS)}
            pq.write_table(
                pa.table(columns), path / f"{number}.parquet", compression=compression, use_dictionary=False,
                row_group_size=1 << 17,
            )  # fmt: skip
        found[f"Parquet, {compression}"] = path
    return found


def images(folder: Path, part: int) -> dict[str, Path]:
    """Write folders of crops of the two photos that scikit-learn comes with."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    random = np.random.default_rng(0)
    found = {}
    for kind, (width, height), count in (
        ("jpg", (500, 375), 1200),
        ("jpg", (224, 224), 2400),
        ("png", (224, 224), 800),
    ):
        path = folder / f"{kind}-{width}"
        path.mkdir()
        for number in range(count // part):
            x, y = random.integers(0, 640 - width), random.integers(0, 427 - height)
            crop = photos[number % 2].crop((x, y, x + width, y + height))
            crop.save(path / f"{number:05}.{kind}", quality=90)
        found[f"{kind.upper()}, {width} x {height}"] = path
    return found


def others(folder: Path, part: int) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Write an .npy, a Zarr and a CSV file."""
    import pyarrow as pa
    import pyarrow.csv
    import zarr

    values = table(1_600_000 // part)
    np.save(folder / "table.npy", values)
    photos = np.random.default_rng(0).integers(0, 256, (4000 // part, 3, 128, 128)).astype(np.uint8)
    np.save(folder / "photos.npy", photos)
    array = zarr.create_array(
        str(folder / "table.zarr"), shape=values.shape, chunks=(1 << 14, COLUMNS), dtype="f4"
    )
    array[...] = values
    rows = values[: 200_000 // part]
    names = {f"column {column}": rows[:, column] for column in range(COLUMNS)}
    pyarrow.csv.write_csv(pa.table(names), folder / "table.csv")
    return {
        "npy, float32": (folder / "table.npy", {}),
        "npy, uint8 images": (folder / "photos.npy", {"pattern": "n c h w -> c"}),
        "Zarr": (folder / "table.zarr", {}),
        "CSV": (folder / "table.csv", {}),
    }


def sparse(path: Path, gigabytes: int) -> None:
    """Write an .npy file of zeros that takes no room on disk."""
    rows = gigabytes * 10**9 // (4 * COLUMNS)
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, COLUMNS), np.float32)) | {
        "shape": (rows, COLUMNS)
    }
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + rows * 4 * COLUMNS)
