"""RunningInputNorm: inputs normalised by the statistics of a stream, as far as it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from warnings import warn

import numpy as np
import torch
from torch import Tensor

from slabnorm.contracts.sample_ids import among, keys_of
from slabnorm.contracts.stream_parts import StreamParts
from slabnorm.cut import cut_of
from slabnorm.errors import (
    DeviceError,
    OptionError,
    ShapeError,
    SlabError,
    StatisticsError,
    StatisticsWarning,
)
from slabnorm.functional import moments
from slabnorm.inputs.features import Features, kept_axes
from slabnorm.inputs.normalizer import AFFINE, FeatureNorm, InputNorm
from slabnorm.inputs.plain_tensors import plain_tensors
from slabnorm.inputs.record import Record, read, write
from slabnorm.inputs.schemes import ZScore, first_features, from_plain, is_number, to_plain
from slabnorm.mergeable_moments import FIELDS, Moments
from slabnorm.nn.diagnostics import recomputing, user_level
from slabnorm.notation import ELLIPSIS, Pattern, parse, product
from slabnorm.tracing import traced

VERSION = 1  # of what the state_dict holds
_MOMENTS = tuple(f"moments.{name}" for name in FIELDS)
# The entries of the state_dict. All are names of attributes, as torch.distributed.checkpoint asks for.
_STATE = ("_extra_state", *_MOMENTS, "samples", "seen")


class RunningInputNorm(FeatureNorm):
    """Normalise inputs with the statistics of the stream that they come from, in train mode and in eval mode.

        forward:  y = (x - mean) / sqrt(var + eps), cut off at -clip and clip
        inverse:  x = y * sqrt(var + eps) + mean

    mean and var are those of everything that `update` was given so far, one for each feature, which the right
    side of the pattern names. The batch's own statistics are never used: what a policy computes for one
    observation does not depend on which others stand beside it.

    What counts is what was observed, not what runs through a network: in reinforcement learning the same
    samples are used in several epochs, or come again from a replay buffer. So `update` is a call of its own,
    and forward alone counts nothing. With `automatic=True` each forward in train mode first counts its batch,
    and then normalises it, for streams that pass once. `update` in eval mode is an error.

    Start: Before the first update y = x, with a warning. From then on a feature that has had one value only
    is divided by 1, and eps is a floor under small spreads.

    Exactness: A batch enters by one merge of Moments, in float64 with low parts and with whole counts, so
    that nothing drifts, however many updates there are and however far from 0 the data lie.

    Bad batches: A batch that holds NaN or infinity where it counts changes nothing. `skipped` counts them,
    and the first one warns.

    State: The state_dict has all that is needed to go on with the same bits, ids included, and loads into a
    norm whose sizes are not known yet. Later updates leave a state_dict as it is. Statistics stay float64
    under `.half()` and the like.

    Args:
        pattern: every axis of a batch, samples first, "->", the axes that keep statistics of their own.
        clip: the largest absolute value of an output; None for no limit.
        eps: added to the variance, in squared units of the data.
        automatic: whether forward in train mode updates first.
        window: forget all but the last so many updates. What they held is counted exactly.
        half_life: forget gradually: after so many updates a sample weighs half. Minimum and maximum stay.
        **sizes: sizes of axes, as in `c=17`. Sizes that are not given are those of the first batch.

    Attributes:
        scheme: the ZScore that makes shift and scale of the statistics.
        skipped: the number of batches that were left out because they were not finite.
        seen: the ids that came with `once`, in ascending order.

    Raises:
        OptionError: an option is out of its range, or window and half_life are both given.
        PatternError: the pattern is wrong, or keeps or splits the sample axis.

    The merge: Chan, Golub and LeVeque (1979). As a layer for policies: Andrychowicz et al., "What matters in
    on-policy reinforcement learning?" (2021).

    >>> import torch, slabnorm as sn
    >>> norm = sn.RunningInputNorm("n c -> c", clip=10, c=2)
    >>> norm.update(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    2
    >>> norm(torch.tensor([[4.0, 20.0], [99.0, 20.0]]))
    tensor([[ 2.,  0.],
            [10.,  0.]])
    >>> norm.update(torch.tensor([[5.0, 50.0]]), once=["episode 7, step 0"])
    1
    >>> norm.update(torch.tensor([[5.0, 50.0]]), once=["episode 7, step 0"])
    0
    >>> norm.moments.mean
    tensor([ 3., 30.], dtype=torch.float64)
    """

    def __init__(
        self,
        pattern: str | Pattern,
        /,
        *,
        clip: float | None = None,
        eps: float = 1e-8,
        automatic: bool = False,
        window: int | None = None,
        half_life: float | None = None,
        **sizes: int,
    ) -> None:
        super().__init__()
        self._pattern = pattern if isinstance(pattern, Pattern) else parse(pattern)
        self.sizes = {
            name: int(size) if isinstance(size, np.integer) else size for name, size in sizes.items()
        }
        _check_options(clip, automatic, window, half_life)
        ends = None if clip is None else (-float(clip), float(clip))
        self.scheme = ZScore(eps=eps, clip=ends)
        self._target, self._clip = self.scheme.target, self.scheme.clip
        self.automatic = automatic
        self.window = None if window is None else int(window)
        self.half_life = None if half_life is None else float(half_life)
        self.skipped = 0
        self._warned: set[str] = set()
        self._dtype = ""
        # None of these are buffers: DistributedDataParallel would replace those of other ranks by the first
        # rank's.
        for name in AFFINE:
            setattr(self, name, torch.empty(0, dtype=torch.float64))
        self._counted: StreamParts | None = None  # all that counts; None: sizes are not known
        self._common: StreamParts | None = None  # what all ranks had at the last sync; None: nothing
        self._news: StreamParts | None = None  # what came since; None: everything
        self._updates = 0  # since the last sync
        self.seen = np.empty(0, np.int64)  # ids, sorted
        self._any = False  # whether a feature has had a value
        with plain_tensors():
            sample = _sample_of(self._pattern, self.sizes)
            if sample is not None:
                self._size(sample)

    def update(self, x: Tensor, *, mask: Tensor | None = None, once: Any = None) -> int:
        """Let a batch enter the statistics; return how many of its samples did.

        Args:
            x: the batch, samples first, with the same features as others.
            mask: True where an element counts, in any shape that broadcasts to x, as in `slabnorm.normalize`.
            once: one id for each sample, a list or tensor of integers or a list of strings. A sample whose id
                came before is left out. Ids are kept for good, in 8 bytes each: integers as they are, strings
                as hashes of 64 bits, of which two in a million are equal with a chance of 3e-8.

        Raises:
            StatisticsError: the norm is in eval mode.
            ShapeError, DtypeError, DeviceError: a tensor does not fit.
            OptionError: it is called within a function that torch.func transforms, or that torch.jit traces.

        Warns:
            StatisticsWarning: the batch is not finite, and is left out with all its ids; only once.
        """
        if not self.training:
            raise StatisticsError(
                "update() was called in eval mode, where statistics stay as they are",
                fix="call train() before, or update only where `norm.training` is true",
            )
        if not torch.compiler.is_compiling() and traced():  # torch.compile runs it outside its graphs
            fix = "call update() before the function that is transformed or traced"
            raise OptionError("torch cannot record an update of statistics", "", fix)
        with torch.inference_mode(False), torch.no_grad():
            self._bind(x)
            self._dtypes(x)
            assert self._counted is not None
            if x.device != self.shift.device:
                problem = f"x is on {x.device}, but the statistics are on {self.shift.device}"
                raise DeviceError(problem, fix=f"move the norm with .to({str(x.device)!r})")
            self._dtype = self._dtype or str(x.dtype).removeprefix("torch.")
            x, mask, samples, keys = self._that_count(x, mask, once)
            if not samples:
                return 0
            wide = x if x.is_floating_point() else x.double()
            batch = StreamParts.of(moments(wide, self._pattern, mask=mask, **self.sizes), samples)
            if not self._enter(batch):
                return 0
            keys = np.sort(keys)  # inserted, as sorting a million ids takes four times as long
            self.seen = np.insert(self.seen, np.searchsorted(self.seen, keys), keys)
            return samples

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised batch, in the shape and memory order of x; floats keep their dtype.

        Raises:
            ShapeError: the batch does not have the same features as others.
            DtypeError: x is complex or sparse.
            OptionError: `automatic` in train mode, under torch.compile, torch.export or torch.func.

        Warns:
            StatisticsWarning: there was no update yet; only once.
        """
        if self.automatic and self.training and not recomputing():
            if traced():
                fix = "leave automatic out, and call update() before the compiled model"
                raise OptionError("torch cannot record a forward that updates statistics", "", fix)
            self.update(x)
        self._bind(x)
        if not self._any:
            self._warn_once(
                "empty",
                "a RunningInputNorm runs before its first update, and returns what it gets",
                "call update(batch) first, or load the state_dict of a norm that has seen data",
            )
        return super().forward(x)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the batch that `forward` maps to y where it is not cut off, in the units of the data.

        Raises:
            ShapeError: the batch does not have the same features as others.
            DtypeError: y is complex or sparse.
        """
        self._bind(y)
        return super().inverse(y)

    def sync(self, group: Any = None) -> None:
        """Merge the statistics of all processes: afterwards each has those of everything that any has seen.

        Each process adds to what all had in common what came since the last `sync`, so that nothing counts
        twice; ids are exchanged too. The result has the same bits everywhere. With `window` or `half_life`
        the updates with the same number count as one, as if one process had had the batches of all. All
        processes of the group must call it. Without torch.distributed there is nothing to do.

        Args:
            group: the process group; None for all processes.

        Raises:
            StatisticsError: in all processes: one is in eval mode; the processes did not have the same
                statistics in common, as after loading different checkpoints; or, with `window` or
                `half_life`, not the same number of updates.
            ShapeError: in all processes: their features differ.
        """
        if not torch.distributed.is_available() or not torch.distributed.is_initialized():
            return
        news = self._counted if self._common is None else self._news
        cpu = torch.device("cpu")
        mine = {
            "training": self.training,
            "options": [self._pattern.text, self.window, self.half_life],
            "common": self._common.digest() if self._common is not None else "",
            "updates": self._updates,
            "sample": None if self._counted is None else list(self._features.sample),
            "dtype": self._dtype,
            "news": None if news is None else news.to(cpu),
            "seen": self.seen,
        }
        every: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(every, mine, group)
        _check_ranks(every)
        with plain_tensors():
            self._take_news(every)

    def freeze(self) -> InputNorm:
        """Return an InputNorm with the statistics as they are now, which `slabnorm.save` writes to a file.

        Its outputs are those of this norm, bit by bit. Its record names the split "stream" and has neither a
        sketch of samples nor a digest of their content, since a stream is not read a second time. `skipped`
        counts batches. With `half_life` counts are sums of real weights.

        Raises:
            StatisticsError: a feature has had no value yet.

        >>> import torch, slabnorm as sn
        >>> norm = sn.RunningInputNorm("n c -> c")
        >>> norm.update(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
        2
        >>> norm.freeze()
        InputNorm(ZScore(ddof=0, eps=1e-08), 'n c -> c', split='stream', samples=2, mean=2..20, std=1..10)
        """
        with plain_tensors():
            found = self.moments
            empty = found.count == 0
            if not self._any or bool(empty.any()):
                which = first_features(empty) if self._any else "all features"
                fix = "update with data that have them first"
                raise StatisticsError("Features have had no value yet", which, fix)
            sample = self._features.sample
            missing = torch.zeros_like(found.count, dtype=torch.int64)
            if None not in sample and not self._features.any_rank and not found.weighted:
                each = self.samples * product(sample) // found.count.numel()  # type: ignore[arg-type]
                missing = each - found.count
            record = Record(
                self.scheme,
                self._pattern.text,
                sample,
                self._dtype,
                "stream",
                self.samples,
                nan="omit" if bool(missing.any()) else "raise",
                sizes=dict(self.sizes),
                skipped=self.skipped,
                weights="real" if found.weighted else "",
            )
            norm = InputNorm(record, found, missing)
        norm.out_dtype = self.out_dtype
        return norm

    @property
    def moments(self) -> Moments:
        """The statistics of all that counts now, one for each feature."""
        return Moments.empty() if self._counted is None else self._counted.total()

    @property
    def samples(self) -> int:
        """The number of samples that count now: all, or those within the window."""
        return 0 if self._counted is None else int(self._counted.samples.sum())

    @property
    def pattern(self) -> Pattern:
        """The pattern that says which axes are features."""
        return self._pattern

    def extra_repr(self) -> str:
        """Return in one line what the norm does, and how much it has seen."""
        parts = [repr(self._pattern.text)]
        parts += [f"{name}={size}" for name, size in self.sizes.items()]
        parts += [f"clip={self._clip[1]:g}"] if self._clip else []
        parts += [f"eps={self.scheme.eps:g}"]
        for name in ("window", "half_life"):
            value = getattr(self, name)
            parts += [f"{name}={value}"] if value is not None else []
        parts += ["automatic=True"] if self.automatic else []
        return ", ".join([*parts, f"samples={self.samples}"])

    def _bind(self, x: Tensor) -> None:
        """Take the sizes of a batch, unless they are known."""
        if self._counted is None and isinstance(x, Tensor) and _dense(x):
            sample = tuple(x.shape[1:])
            if 0 in Features.of(self._pattern, sample, self._pairs).shape:
                fix = "give samples that have a value or more"
                raise ShapeError("The batch has no features", f"shape {tuple(x.shape)}", fix)
            kept = kept_axes(self._pattern, len(sample))
            with plain_tensors():
                self._size(tuple(size if at in kept else None for at, size in enumerate(sample)), x.device)

    @property
    def _device(self) -> torch.device:
        """Where the statistics lie: never on meta, where models are made that are loaded later."""
        return torch.device("cpu") if self.shift.is_meta else self.shift.device

    @property
    def _pairs(self) -> tuple[tuple[str, int], ...]:
        return tuple(sorted(self.sizes.items()))

    def _size(self, sample: tuple[int | None, ...], device: Any = None) -> None:
        """Make statistics of no samples, for samples of this shape."""
        self._features = Features.of(self._pattern, sample, self._pairs)
        self._common = self._news = None
        self._updates = 0
        nothing = self._none(self._device if device is None else device)
        self._put(nothing, nothing.total())

    def _none(self, device: Any) -> StreamParts:
        return StreamParts.none(self.window or 1, self._features.shape, device, self.half_life is not None)

    def _that_count(
        self, x: Tensor, mask: Tensor | None, once: Any
    ) -> tuple[Tensor, Tensor | None, int, np.ndarray]:
        """Return a batch without samples that do not count, its mask, how many there are, and their ids."""
        valid = None if mask is None else cut_of(x, self._pattern, mask, None, None).valid
        counts = torch.ones(len(x), dtype=torch.bool, device="cpu")
        if valid is None and once is None:
            return x, None, len(x) if x.numel() else 0, np.empty(0, np.int64)
        if valid is not None:
            counts &= valid.flatten(1).any(1).cpu() if valid.dim() > 1 else valid.cpu()
        keys = np.empty(0, np.int64)
        if once is not None:
            every = keys_of(once, len(x))
            rows = counts.nonzero().flatten().numpy()
            rows = rows[np.unique(every[rows], return_index=True)[1]]  # the first of equal ids
            rows = np.sort(rows[~among(every[rows], self.seen)])
            counts = torch.zeros_like(counts)
            counts[rows], keys = True, every[rows]
        if x.numel() and not bool(counts.all()):
            which = counts.to(x.device)
            x = x[which]
            valid = valid if valid is None or len(valid) == 1 else valid[which]
        return x, valid, int(counts.sum()) if x.numel() else 0, keys

    def _enter(self, batch: StreamParts) -> bool:
        """Let what counts of a batch enter, and return True; or leave everything as it was, and warn."""
        assert self._counted is not None
        counted = self._after(self._counted, batch)
        total = counted.total()
        numbers = torch.stack([batch.moments.mean[0], batch.moments.m2[0], total.mean, total.m2])
        if not bool(numbers.isfinite().all()):
            self.skipped += 1
            self._warn_once(
                "finite",
                "a batch was left out of the statistics of a stream: its values, or their squares, are not "
                "finite",
                "look for what made it; `skipped` counts such batches",
            )
            return False
        self._put(counted, total)
        if self._common is not None:
            news = self._none(self.shift.device) if self._news is None else self._news
            self._common, self._news = self._after(self._common, None), self._after(news, batch)
        self._updates += 1
        return True

    def _after(self, counted: StreamParts, batch: StreamParts | None) -> StreamParts:
        """Return what counts after an update with a batch; None is an update with nothing."""
        if self.window is not None:
            if batch is None:
                batch = StreamParts.none(1, self._features.shape, self.shift.device, False)
            return counted.push(batch)
        if self.half_life is not None:
            counted = counted.fade(0.5 ** (1 / self.half_life))
        return counted if batch is None else counted.merge(batch)

    def _put(self, counted: StreamParts, found: Moments, scheme: ZScore | None = None) -> None:
        """Make these the statistics, with the shift and scale of their total; or change nothing."""
        scheme = self.scheme if scheme is None else scheme
        none = found.count == 0
        if bool(none.any()):  # of a feature without values: as of one value of 0, so shift 0 and scale 1
            low, high = (torch.where(none, 0.0, t) for t in (found.min, found.max))
            found = replace(found, count=torch.where(none, 1, found.count), min=low, max=high)
        affine = scheme.affine(found, found.mean)
        self._counted, self._any = counted, not bool(none.all())
        self.scheme, self._clip = scheme, scheme.clip
        for name in AFFINE:
            setattr(self, name, getattr(affine, name))
        self._note_range()

    def _take_news(self, every: list[Any]) -> None:
        """Replace the statistics by what all ranks had in common and the news of each, in their order."""
        known = [rank for rank in every if rank["sample"] is not None]
        if not known:
            return
        device = self._device
        if self._counted is None:
            self._size(tuple(known[0]["sample"]), device)
        self._dtype = self._dtype or next((rank["dtype"] for rank in known if rank["dtype"]), "")
        merged = self._none(device) if self._common is None else self._common
        for rank in known:
            if rank["news"] is not None:
                merged = merged.merge(rank["news"].to(device))
        self._put(merged, merged.total())
        self._common, self._news, self._updates = merged, None, 0
        self.seen = np.unique(np.concatenate([rank["seen"] for rank in every]))

    def _warn_once(self, key: str, what: str, fix: str) -> None:
        if key in self._warned or traced():
            return
        self._warned.add(key)
        warn(f"{what}\n  fix: {fix}", StatisticsWarning, stacklevel=user_level())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        device = fn(torch.empty_like(self.shift)).device
        for name in AFFINE:
            old = getattr(self, name)
            setattr(self, name, torch.empty_like(old, device=device) if old.is_meta else old.to(device))
        for name in ("_counted", "_common", "_news"):
            counted = getattr(self, name)
            if counted is not None:
                setattr(self, name, counted.to(self._device))
        if self._counted is not None and not self.shift.is_meta:
            self._put(self._counted, self._counted.total())  # after meta there are no values
        return self

    # The state_dict: these entries, and no buffers.

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        counted = self._counted
        plain = {
            "version": VERSION,
            "pattern": self._pattern.text,
            "sample": None if counted is None else list(self._features.sample),
            "scheme": to_plain(self.scheme),
            "window": self.window,
            "half_life": self.half_life,
            "dtype": self._dtype,
            "skipped": self.skipped,
        }
        destination[prefix + "_extra_state"] = torch.tensor(list(write(plain).encode()), dtype=torch.uint8)
        # Copies: of a norm at two places in a model, as of actor and critic, safetensors would leave one out.
        if counted is not None:
            for name in FIELDS:
                destination[f"{prefix}moments.{name}"] = getattr(counted.moments, name).clone()
            destination[prefix + "samples"] = counted.samples.clone()
        destination[prefix + "seen"] = torch.tensor(self.seen, device="cpu")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], *rest: Any,
    ) -> None:  # fmt: skip
        mine = {name: state_dict[prefix + name] for name in _STATE if prefix + name in state_dict}
        others = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in mine}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, *rest)
        if "_extra_state" not in mine:
            missing_keys.extend(prefix + name for name in _STATE)
            return
        plain = self._read_state(mine, prefix)
        with plain_tensors():
            self._restore(plain, mine, prefix)

    def _read_state(self, mine: dict[str, Tensor], prefix: str) -> dict[str, Any]:
        """Return what the state_dict says of the stream, if it is a stream of this kind."""
        try:
            plain: dict[str, Any] = read(bytes(mine["_extra_state"].cpu().tolist()).decode())
            if plain["version"] != VERSION:
                problem = f"it is of version {plain['version']!r:.40}, and this slabnorm reads {VERSION}"
                raise ValueError(problem)
            scheme = from_plain(plain["scheme"])
            known = isinstance(scheme, ZScore) and type(plain["skipped"]) is int
            known = known and isinstance(plain["dtype"], str) and isinstance(plain["sample"], list | None)
            sizes = plain["sample"] or []
            if not known or not all(size is None or (type(size) is int and size > 0) for size in sizes):
                raise ValueError("a field has a value that no stream has")
            plain["scheme"] = scheme
            theirs = plain["pattern"], plain["window"], plain["half_life"]
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, SlabError) as error:
            problem = f"The state_dict's entry {prefix}_extra_state is damaged"
            raise StatisticsError(problem, str(error), "load an earlier checkpoint") from error
        own = self._pattern.text, self.window, self.half_life
        if theirs != own:
            raise StatisticsError(
                "The state_dict is that of another kind of stream",
                f"pattern, window and half_life are {theirs!r}, not {own!r}",
                "make the RunningInputNorm with these",
            )
        return plain

    def _restore(self, plain: dict[str, Any], mine: dict[str, Tensor], prefix: str) -> None:
        """Take the statistics of a state_dict, or raise StatisticsError and stay as it was."""
        device, counted, features = self._device, None, None
        if plain["sample"] is not None:
            features = Features.of(self._pattern, tuple(plain["sample"]), self._pairs)
            counted = _loaded(mine, (self.window or 1, *features.shape), self.half_life is not None, prefix)
        if "seen" not in mine:
            fix = "load the whole state_dict"
            raise StatisticsError(f"The state_dict has no {prefix}seen, the ids that came", "", fix)
        seen = mine["seen"].cpu()
        if seen.dtype != torch.int64 or seen.dim() != 1 or bool((seen.diff() <= 0).any()):
            raise StatisticsError(f"{prefix}seen must be ids in ascending order", str(seen.dtype))
        if counted is not None and features is not None:
            counted = counted.to(device)
            self._put(counted, counted.total(), plain["scheme"])
            self._features = features
        elif self._counted is not None:  # sizes are known, and nothing has been counted
            nothing = self._none(device)
            self._put(nothing, nothing.total(), plain["scheme"])
        self._common, self._news, self._updates = counted, None, 0
        self.seen, self.skipped, self._dtype = seen.numpy().copy(), plain["skipped"], plain["dtype"]


def _dense(x: Tensor) -> bool:
    return x.layout == torch.strided and not x.is_complex()


def _loaded(mine: dict[str, Tensor], shape: tuple[int, ...], weighted: bool, prefix: str) -> StreamParts:
    """Return what a state_dict says has been counted.

    Raises:
        StatisticsError: an entry is missing or damaged, or holds numbers that no data have.
    """
    lacking = [name for name in (*_MOMENTS, "samples") if not isinstance(mine.get(name), Tensor)]
    wrong = [f"{name} of shape {tuple(mine[name].shape)}" for name in _MOMENTS if name not in lacking
             and tuple(mine[name].shape) != shape]  # fmt: skip
    if lacking or wrong or tuple(mine["samples"].shape) != shape[:1]:
        got = ", ".join([f"no {name}" for name in lacking] + wrong) or "samples of another shape"
        problem = f"The state_dict has not all statistics of the RunningInputNorm {prefix[:-1]}".rstrip()
        raise StatisticsError(problem, got, f"the shape of each is {shape}; load the whole state_dict")
    # Copies, as the tensors of a state_dict are its owner's.
    values = {name: mine[name].detach().cpu().clone() for name in (*_MOMENTS, "samples")}
    counts = torch.float64 if weighted else torch.int64
    dtypes = dict.fromkeys(_MOMENTS, torch.float64) | {"moments.count": counts, "samples": torch.int64}
    cast = [
        f"{name} is {values[name].dtype}" for name, dtype in dtypes.items() if values[name].dtype != dtype
    ]
    if cast:
        fix = "keep float64 where a checkpoint is converted"
        raise StatisticsError(f"Statistics in the state_dict were cast: {prefix}{cast[0]}", "", fix)
    for name in ("mean", "m2", "mean_low", "m2_low"):
        if not bool(values[f"moments.{name}"].isfinite().all()):
            fix = "load an earlier checkpoint"
            raise StatisticsError(f"{prefix}moments.{name} is not finite", "the checkpoint is damaged", fix)
    return StreamParts(Moments(*(values[name] for name in _MOMENTS), weighted=weighted), values["samples"])


def _check_options(clip: Any, automatic: Any, window: Any, half_life: Any) -> None:
    if not isinstance(automatic, bool):
        raise OptionError("automatic must be True or False", repr(automatic))
    if clip is not None and not (is_number(clip) and clip > 0):
        raise OptionError("clip must be a number above 0, or None", repr(clip), "10 is usual")
    if window is not None and half_life is not None:
        problem = "window and half_life are both given, which are two ways to forget"
        raise OptionError(problem, f"window={window!r}, half_life={half_life!r}", "give one of them")
    whole = isinstance(window, int | np.integer) and not isinstance(window, bool) and window > 0
    if window is not None and not whole:
        raise OptionError("window must be a number of updates, 1 or more", repr(window))
    if half_life is not None and not (is_number(half_life) and half_life > 0):
        raise OptionError("half_life must be a number of updates above 0", repr(half_life))


def _sample_of(pattern: Pattern, sizes: dict[str, int]) -> tuple[int | None, ...] | None:
    """Return the shape of a sample, as far as sizes say it; None if they do not say all features.

    Raises:
        PatternError: the sizes do not fit the pattern, or it keeps or splits the sample axis.
    """
    axes = [item for item in pattern.left if item != (ELLIPSIS,)]
    first = 0 if pattern.left[0] == (ELLIPSIS,) else 1
    pattern.check_sizes(sizes)
    shape = tuple(product([sizes.get(name, 1) for name in item]) for item in axes)
    Features.of(pattern, shape[first:], tuple(sorted(sizes.items())))  # whatever the sizes of the others
    kept = [item for item in pattern.left if pattern.kept.intersection(item)]
    if any(name not in sizes for item in kept for name in item):
        return None
    return tuple(size if item in kept else None for item, size in zip(axes, shape, strict=True))[first:]


def _check_ranks(every: list[Any]) -> None:
    """Raise, in all processes alike, unless their statistics can be merged."""
    resting = [number for number, rank in enumerate(every) if not rank["training"]]
    if resting:
        fix = "call train() in all processes before"
        raise StatisticsError(
            "sync() in eval mode, where statistics stay as they are", f"rank {resting[0]}", fix
        )

    def differ(what: str) -> str:
        values = [rank[what] for rank in every if what != "sample" or rank[what] is not None]
        first = next((value for value in values if value != values[0]), None) if values else None
        return "" if first is None else f"{values[0]!r} and {first!r}"

    for what in ("options", "sample"):
        found = differ(what)
        if found:
            fix = "make the same RunningInputNorm in every process, and give it the same features"
            raise ShapeError("The streams of different processes differ", found, fix)
    forgets = any(every[0]["options"][1:])
    if forgets and differ("updates"):
        raise StatisticsError(
            "With window or half_life all processes need the same number of updates between two syncs",
            differ("updates"),
            "update in every process, or in none, before a sync; a batch that was left out is no update",
        )
    if differ("common"):
        raise StatisticsError(
            "The processes did not have the same statistics after the last sync",
            "they have loaded different checkpoints, or not all took part in it",
            "sync before a checkpoint is saved, and load the same one in every process",
        )
