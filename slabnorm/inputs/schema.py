"""What all samples of a data set have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slabnorm.errors import DataError
from slabnorm.inputs.sources.base import Block, Columns, dtype_name
from slabnorm.inputs.sources.parts import check_shape


@dataclass(frozen=True)
class Schema:
    """The shape of one sample and the dtype's name.

    Attributes:
        sample: a size for every axis; None where samples differ, as the height and width of images may.
        dtype: such as "uint8"; "mixed" of a table whose columns have several.
        names: of the features, where the data have names for them, as the columns of a table.
        seen: the sizes of the first sample, where samples may differ.
    """

    sample: tuple[int | None, ...]
    dtype: str
    names: tuple[str, ...] = ()
    seen: tuple[int, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.sample)
        return f"samples of shape ({sizes}{',' if len(self.sample) == 1 else ''}) and dtype {self.dtype}"

    def takes(self, other: Schema) -> bool:
        """Whether samples of another schema are of this one, too."""
        return (
            self.dtype == other.dtype
            and self.names == other.names
            and len(self.sample) == len(other.sample)
            and all(size in (None, given) for size, given in zip(self.sample, other.sample, strict=True))
        )

    def pinned(self, axes: frozenset[int]) -> Schema:
        """Return the schema of samples that are as long as the first along these axes of theirs."""
        pairs = enumerate(zip(self.sample, self.seen or self.sample, strict=True))
        return replace(self, sample=tuple(seen if axis in axes else size for axis, (size, seen) in pairs))

    @property
    def values(self) -> int:
        """Values in a sample; one for every size that is not known."""
        total = 1
        for size in self.sample:
            total *= size or 1
        return total


def schema_of(block: Block | Columns, name: str) -> Schema:
    """Return what a block says of its samples.

    Raises:
        DataError: it has no samples, or samples without values.
    """
    if isinstance(block, Columns):
        return Schema((len(block.names),), block.dtype, block.names)
    return Schema(check_shape(block.shape, name)[1:], dtype_name(block))


def check_schema(schema: Schema, block: Block | Columns, name: str, where: str) -> None:
    """Raise DataError unless a block's samples are of the schema."""
    given = schema_of(block, name)
    if not schema.takes(given):
        raise DataError(
            f"all samples of a data set have one shape and dtype: {schema}",
            f"{where}: {given}",
            "resize, crop, pad or convert them first; (x, y) is one batch, not a list of two",
        )
