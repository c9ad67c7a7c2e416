"""Callbacks that watch a training in Lightning or transformers, and logs for TensorBoard of what is watched.

LightningWatch and TrainerWatch are made when they are first asked for, since their parents are classes of
packages that may not be installed.
"""

from __future__ import annotations

import logging
import math
import sys
from bisect import bisect_right
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from slabnorm.doctor.watch import NUMBERS, WatchRecord, watch
from slabnorm.errors import OptionError
from slabnorm.extras import extra
from slabnorm.text import printable

log = logging.getLogger("slabnorm")


class TensorBoardLog:
    """Write to TensorBoard what a watch sees: extra `slabnorm[tensorboard]`.

    Each number of each layer is a scalar, at the step that was looked at: `slabnorm.spread/encoder.norm1` is
    the `spread` of the layer `encoder.norm1`. Numbers that a layer does not have are left out. `close` adds
    the findings as the text `slabnorm.findings`.

    Args:
        record: what `slabnorm.watch` fills.
        log_dir: the folder of the run; it is made if there is none.

    Raises:
        ExtraError: TensorBoard is not installed.
        OptionError: the folder cannot be made.

    >>> import torch, tempfile, slabnorm as sn
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with tempfile.TemporaryDirectory() as folder, sn.watch(model) as record:
    ...     board = sn.TensorBoardLog(record, folder)
    ...     for _ in range(20):
    ...         model(torch.randn(16, 4)).square().mean().backward()
    ...         optimizer.step()
    ...         board.write()
    ...     board.close()
    >>> record.looks
    [0, 10]
    """

    def __init__(self, record: WatchRecord, log_dir: str | Path) -> None:
        extra("tensorboard", "writing logs", "'slabnorm[tensorboard]'")
        from torch.utils.tensorboard import SummaryWriter

        self.record, self._written = record, -1
        try:
            self._writer = SummaryWriter(str(log_dir))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = getattr(error, "strerror", None) or str(error)
            problem = "log_dir must be a folder that can be written to"
            raise OptionError(problem, f"{printable(log_dir)}: {why}", "name another one") from error

    def write(self) -> None:
        """Write the looks that are not written yet."""
        looks = self.record.looks
        for place in range(bisect_right(looks, self._written), len(looks)):
            for name, track in self.record.tracks.items():
                for key in NUMBERS:
                    value = getattr(track, key)[place]
                    if not math.isnan(value):
                        self._writer.add_scalar(f"slabnorm.{key}/{name or 'model'}", value, looks[place])
            self._written = looks[place]

    def close(self) -> None:
        """Write the looks that are not written yet and the findings, and close the file."""
        self.write()
        # Indented, it is code to Markdown, which keeps the lines as they are and reads no name as markup.
        lines = [f"    {printable(line, 1000)}" for line in str(self.record).splitlines()]
        self._writer.add_text("slabnorm.findings", "\n".join(lines), self.record.steps)
        self._writer.close()


class _Watch:
    """What the callbacks of all trainers do: watch from the start of a training to its end."""

    def __init__(self, every: int = 10, log_dir: str | Path | None = None) -> None:
        self.every, self.log_dir = every, log_dir
        self.record: WatchRecord | None = None
        self._board: TensorBoardLog | None = None
        self._open, self._speaks = ExitStack(), False

    def _begin(self, model: nn.Module, first: bool) -> None:
        self.close()  # of a training that nobody ended
        with ExitStack() as entered:
            self.record = entered.enter_context(watch(model, self.every))
            self._board, self._speaks = None, first
            if self.log_dir is not None and first:
                self._board = TensorBoardLog(self.record, self.log_dir)
                entered.callback(self._board.close)
            self._open = entered.pop_all()

    def _write(self) -> None:
        if self._board is not None:
            self._board.write()

    def _end(self) -> None:
        self.close()
        if self.record is not None and self._speaks:
            log.log(logging.INFO if self.record.healthy else logging.WARNING, "%s", self.record)
        self._speaks = False

    def close(self) -> None:
        """Remove the hooks, and write the rest of the log. At the end of a training this is done already."""
        self._board = None
        self._open.close()


def _lightning_watch() -> type:
    # Lightning has two names, and classes of one are none of the other.
    old = "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules
    name = "pytorch_lightning" if old else "lightning.pytorch"
    parent: Any = extra(name, "LightningWatch", "lightning").Callback

    class LightningWatch(_Watch, parent):
        """Watch a training of Lightning's Trainer, as `slabnorm.watch` does.

        Hooks are on the LightningModule from the start of the training to its end, by an exception too. Then
        the findings go to the logger `slabnorm`: as a warning, which Python shows, or as an info if nothing
        is worse than a note. Of several processes the first one speaks and writes; each has a record.

        Args:
            every: of how many steps of an optimiser one is looked at.
            log_dir: the folder of a log for TensorBoard, see `TensorBoardLog`; None: no log.

        Attributes:
            record: the WatchRecord of the training that runs or ran last; None before the first.

        Raises (when it is imported):
            ExtraError: Lightning is not installed.

        Usage: `Trainer(callbacks=[watching := sn.LightningWatch()])`.
        """

        __module__, __qualname__ = __name__, "LightningWatch"

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            """Begin: parallel strategies have wrapped the model and exchanged its norms by now."""
            self._begin(pl_module, trainer.is_global_zero)

        def on_train_batch_end(self, *given: Any) -> None:
            """Log what is new."""
            self._write()

        def on_train_end(self, *given: Any) -> None:
            """End."""
            self._end()

        def on_exception(self, *given: Any) -> None:
            """End early."""
            self._end()

    return LightningWatch


def _trainer_watch() -> type:
    parent: Any = extra("transformers", "TrainerWatch", "'transformers[torch]'").TrainerCallback

    class TrainerWatch(_Watch, parent):
        """Watch a training of the Trainer of transformers, as `slabnorm.watch` does.

        Hooks are on the model from the start of the training to its end. Then the findings go to the logger
        `slabnorm`: as a warning, which Python shows, or as an info if nothing is worse than a note. Of
        several processes the first one speaks and writes; each has a record.

        The Trainer does not tell callbacks of an exception. After one, hooks stay until the next training
        begins, the callback is deleted, or `close()` is called: `with contextlib.closing(TrainerWatch()) as
        watching` makes sure of it.

        Args:
            every: of how many steps of an optimiser one is looked at.
            log_dir: the folder of a log for TensorBoard, see `TensorBoardLog`; None: no log.

        Attributes:
            record: the WatchRecord of the training that runs or ran last; None before the first.

        Raises (when it is imported):
            ExtraError: transformers is not installed.

        Usage: `Trainer(..., callbacks=[watching := sn.TrainerWatch()])`.
        """

        __module__, __qualname__ = __name__, "TrainerWatch"

        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Begin."""
            self._begin(given["model"], state.is_world_process_zero)

        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """Log what is new."""
            self._write()

        def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            """End."""
            self._end()

    return TrainerWatch


def __getattr__(name: str) -> Any:
    makers = {"LightningWatch": _lightning_watch, "TrainerWatch": _trainer_watch}
    if name not in makers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = makers[name]()
    return made
