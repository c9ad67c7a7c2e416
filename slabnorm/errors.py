"""What can go wrong, as types.

An error says three things: what is wrong, what was found, and what to do. Its first line says what is wrong,
and so can stand alone: "No such data file: train.npy", "eps must be a finite number, 0 or more".

    SlabError
    |-- PatternError      the text of a pattern, or the sizes given with it   (ValueError)
    |-- ShapeError        a tensor that does not fit its pattern              (ValueError)
    |-- DtypeError        integers, complex numbers, sparse layouts           (TypeError)
    |-- DeviceError       tensors of one call on different devices            (ValueError)
    |-- OptionError       an argument outside its range: eps, momentum, ...   (ValueError)
    |-- StatisticsError   statistics that cannot be: a negative variance,
    |                     one element per slab, eps=0 on a constant slab      (ValueError)
    |-- DataError         a data set that cannot be read or used              (ValueError)
    |   |-- LeakageError  statistics asked from data they must not see
    |   |-- ArtifactError a file of fitted statistics that is damaged, or no such file
    |   `-- LedgerError   what an interrupted fit or study has done, damaged, of other data, or in use
    |-- ContractError     a batch, a model or a checkpoint that does not fit
    |                     its contract                                        (ValueError)
    |-- ModelError        a model that cannot be imported, built or run       (ValueError)
    |   `-- VerificationError  a changed model that computes something else
    `-- ExtraError        an optional dependency that is not installed        (ImportError)

    SlabWarning (UserWarning)
    |-- ModeWarning        a layer runs in a mode nobody can have meant
    |-- StatisticsWarning  statistics left out, missing or never updated
    |-- KernelWarning      kernels that cannot run, or cannot be kept on disk
    `-- DataWarning        data that was used, but deserves a look
"""

from __future__ import annotations


class SlabError(Exception):
    """The parent of all slabnorm errors.

    Args:
        problem: what is wrong, in one short sentence that names the thing: a file, an argument, a tensor. It
            begins with a capital letter unless it begins with code, and has no full stop at the end.
        got: what was found and, where it helps, what was expected. Empty if the problem says so already.
        fix: what to do about it, in Python's words (``nan="omit"``), which the command line translates into
            its own options.
    """

    def __init__(self, problem: str, got: str = "", fix: str = "") -> None:
        self.problem, self.got, self.fix = problem, got, fix
        lines = [problem]
        if got:
            lines.append(f"  got: {got}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[SlabError], tuple[str, str, str]]:
        return type(self), (self.problem, self.got, self.fix)


class PatternError(SlabError, ValueError):
    """The text of a pattern, or the sizes given with it, are wrong."""


class ShapeError(SlabError, ValueError):
    """A tensor does not fit its pattern."""


class DtypeError(SlabError, TypeError):
    """A tensor holds what cannot be normalised: integers, complex numbers, a sparse layout."""


class DeviceError(SlabError, ValueError):
    """The tensors of one call lie on different devices."""


class OptionError(SlabError, ValueError):
    """An argument is outside its range."""


class StatisticsError(SlabError, ValueError):
    """Statistics that cannot be: a negative variance, one element per slab, eps=0 on a constant slab."""


class DataError(SlabError, ValueError):
    """A data set cannot be read or used."""


class LeakageError(DataError):
    """Statistics were asked from data they must not see."""


class ArtifactError(DataError):
    """A file of fitted statistics is damaged, of another version, or no such file."""


class LedgerError(DataError):
    """What an interrupted fit has counted is damaged, of other data or arguments, or in use."""


class ContractError(SlabError, ValueError):
    """A batch, a model or a checkpoint does not fit its contract."""


class ModelError(SlabError, ValueError):
    """A model cannot be imported, built or run."""


class VerificationError(ModelError):
    """A changed model does not compute what it did; the change was not made."""


class ExtraError(SlabError, ImportError):
    """An optional dependency is not installed."""


class SlabWarning(UserWarning):
    """The parent of all slabnorm warnings."""


class ModeWarning(SlabWarning):
    """A layer runs in a mode nobody can have meant, such as train mode without gradients."""


class StatisticsWarning(SlabWarning):
    """Statistics were left out, are missing, or were never updated."""


class KernelWarning(SlabWarning):
    """Kernels that cannot run, for which plain PyTorch computes; or that cannot be kept on disk."""


class DataWarning(SlabWarning):
    """Data was used, but deserves a look."""
