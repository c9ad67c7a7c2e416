"""compare(): the same network under each norm, at each batch size, over paired seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from slabnorm.errors import ModelError, SlabError
from slabnorm.extras import extra
from slabnorm.report.study import DataRecord, RunRecord, SchemeRecord, StudyRecord
from slabnorm.report.wording import norm_label, scheme_label
from slabnorm.study import method
from slabnorm.study.data import Dataset
from slabnorm.study.exchange import Exchanged
from slabnorm.study.ledger import RunLedger, shared_digest
from slabnorm.study.models import NORMS, Build, Model, find_build
from slabnorm.study.options import BATCH_SIZES, SEEDS, Options, as_tuple
from slabnorm.study.rates import RATES, best_rates, describe, edge_notes, search
from slabnorm.study.read import read_data
from slabnorm.study.scaling import SCHEMES, fit_inputs
from slabnorm.study.scaling import describe as in_words
from slabnorm.study.statistics import cell, curve
from slabnorm.study.tensorboard import logger
from slabnorm.study.train import Bench, Rules
from slabnorm.study.trial import try_model
from slabnorm.study.verdict import inputs_verdict, rates_verdict, verdict
from slabnorm.study.workers import Team, team
from slabnorm.text import printable


def compare(
    build_model: Model = "conv",
    data: Any = "digits",
    *,
    norms: Iterable[str] = NORMS,
    batch_sizes: int | Iterable[int] = BATCH_SIZES,
    seeds: int = SEEDS,
    epochs: int = Rules.epochs,
    scheme: str = "zscore",
    schemes: Iterable[str] = SCHEMES,
    target: float = Rules.target,
    learning_rate: float = Rules.learning_rate,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    ledger: str | Path | None = None,
    resume: bool = False,
    log_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StudyRecord:
    """Train one network with each norm and batch size, each at its best learning rate, over paired seeds.

    The learning rate of each norm, batch size and input scheme is chosen on the validation split, by runs
    with other seeds than those that are reported. Runs of one seed have the same initial weights and see the
    samples in the same order, under every norm. Input statistics come from the training split only, and test
    accuracy is measured in eval mode.

    Args:
        build_model: "conv", "mlp", "package.module:build", or a function `build(norm)` that returns a
            network, in which `norm(channels)` makes the norm layers. Or a model as it is: a network, or a
            function without an argument that returns one, whose norm layers (of torch.nn or slabnorm) are
            exchanged for each norm. Of a network every run gets a copy, with weights that are drawn anew for
            each seed if all of its layers have `reset_parameters()`.
        data: "digits", "photos" (patches of two photographs) or "fashion-mnist" (`apt install
            dataset-fashion-mnist`); a pair (x, y); an `.npz` file with the arrays x and y; a folder with one
            folder of images for each class; a folder with the four IDX files of MNIST and its like, whose
            test split is kept; or a torch `Dataset` with a length, of items (x, y).
        norms: "none", "batch", "layer", "instance", "group", or patterns such as "n c ... -> n c"; and "dyt"
            (dynamic tanh) and "derf" (dynamic erf), which take the place of a norm.
        batch_sizes: the numbers of samples per step. None may be larger than the training split.
        seeds: how many times to train with each norm and batch size.
        epochs: the number of passes over the training split, the same for every run.
        scheme: how inputs are scaled while norms are compared: "raw", "fixed", "minmax" or "zscore".
        schemes: the input schemes to compare, without a norm and at the middle batch size, or of two the
            larger; () for none.
        target: the validation accuracy up to which steps are counted, as a share.
        learning_rate: the base rate at batch size 128, in proportion at other sizes; 1/4, 1, 4 and 16 times
            as much is tried.
        workers: the number of processes, or of runs at a time on Ray; by default 1 process, or a run for
            every processor of the cluster. With more processes, a script needs
            `if __name__ == "__main__":`.
        engine: "local" for processes, or "ray" for a cluster.
        address: of the cluster. By default, the one that this process is part of; if there is none, one is
            started here.
        ledger: a file that keeps every run that is done, so that a study that was interrupted can go on. It
            is yours to delete when you have the result.
        resume: whether to go on with the runs that an interrupted study has left in its ledger. Runs of other
            options, data or another model are not taken for those of this one.
        log_dir: a folder for TensorBoard, with a log of every run.
        progress: a function to call with the number of steps since its last call, and of all steps.

    Raises:
        OptionError: an argument is out of range.
        DataError: the data cannot be read or used.
        ModelError: the model cannot be imported, built or run, or its norms cannot be exchanged.
        PatternError: a norm is a malformed pattern.
        LedgerError: there is a ledger and `resume` is false, or it cannot be used.
        ExtraError: a package is not installed.

    >>> import slabnorm as sn
    >>> study = sn.compare("mlp", norms=["none"], batch_sizes=[128], seeds=2, epochs=1, schemes=())
    >>> [cell.runs for cell in study.cells]
    [2]
    """
    for package in ("sklearn.model_selection", "scipy.stats"):  # before hours of training
        extra(package, "compare", "'slabnorm[study]'")
    began = time.perf_counter()
    rules = Rules(epochs=epochs, target=target, learning_rate=learning_rate)
    sizes = (batch_sizes,) if isinstance(batch_sizes, int) else tuple(batch_sizes)
    options = Options(
        as_tuple(norms), sizes, seeds, scheme, as_tuple(schemes), rules, workers, engine, address
    )
    log = None if log_dir is None else logger(log_dir, rules)
    with ExitStack() as stack:
        kept = None if ledger is None else RunLedger(Path(ledger), resume)
        if kept:
            stack.callback(kept.close)
        dataset = read_data(data)
        options.check_against(dataset)
        name, build = find_build(build_model, dataset)
        bench, scheme_records, notes = prepare(build, dataset, options)
        parameters, said = try_model(bench, options.norms, options.scheme, options.batch_sizes)
        shared = shared_digest(bench, options.norms[0]) if kept else ""
        hands = team(bench, workers, engine, address, progress, kept, shared, log)
        together = stack.enter_context(hands)
        tried, norm_runs, input_runs = run_all(options, bench, together)
    return assemble(
        options=options,
        bench=bench,
        schemes=scheme_records,
        model=name,
        parameters=parameters,
        tried=tried,
        norm_runs=norm_runs,
        input_runs=input_runs,
        notes=notes + said + (build.notes() if isinstance(build, Exchanged) else ()),
        processes=together.processes,
        seconds=time.perf_counter() - began,
    )


def run_all(
    options: Options, bench: Bench, together: Team
) -> tuple[list[RunRecord], list[list[RunRecord]], list[list[RunRecord]]]:
    """Choose the learning rates, then train every setting at its own.

    Returns:
        The runs that chose; those of each norm and batch size; and those of each input scheme.
    """
    of_norms, of_inputs = options.settings(scheme for scheme in options.schemes if scheme in bench.layers)
    settings, seeds = list(dict.fromkeys([*of_norms, *of_inputs])), range(options.seeds)
    # A run takes as many steps at any rate.
    finals = [run for setting in settings for run in setting.runs(seeds, (1.0,))]
    together.expect([run for s in settings for run in s.runs(options.search_seeds, RATES)] + finals)
    tried = search(settings, options.search_seeds, together.do)
    best = best_rates(tried)
    chosen = {setting: setting.runs(seeds, (best[setting],)) for setting in settings}
    records = together.do([run for runs in chosen.values() for run in runs])
    norm_runs, input_runs = (
        [[records[run] for run in chosen[setting]] for setting in which] for which in (of_norms, of_inputs)
    )
    return tried, norm_runs, input_runs


def prepare(
    build: Build, data: Dataset, options: Options
) -> tuple[Bench, tuple[SchemeRecord, ...], tuple[str, ...]]:
    """Fit every input scheme on the training split. One that does not fit the data is left out, with a note.

    Raises:
        SlabError: the scheme for the comparison of norms does not fit the data.
    """
    layers: dict[str, nn.Module] = {}
    records, notes = [], []
    for scheme in dict.fromkeys((*options.schemes, options.scheme)):
        try:
            layers[scheme], said = fit_inputs(data, scheme)
        except SlabError as error:
            if scheme == options.scheme:
                raise
            why = printable(error.problem + (f" ({error.got})" if error.got else ""))
            records.append(SchemeRecord(scheme, "left out", why))
            notes.append(f"Inputs, {scheme_label(scheme)}: left out. {why}.")
            continue
        records.append(SchemeRecord(scheme, in_words(layers[scheme])))
        notes.extend(f"Inputs, {scheme_label(scheme)}: {printable(text)}." for text in said)
    bench = Bench(build, data, layers, options.rules)
    if {"fixed", "minmax"} <= set(layers) and torch.equal(bench.inputs("fixed"), bench.inputs("minmax")):
        notes.append("Inputs: fixed and min-max are the same here: the training split fills the known range.")
    return bench, tuple(records), tuple(notes)


def assemble(
    *,
    options: Options,
    bench: Bench,
    schemes: tuple[SchemeRecord, ...],
    model: str,
    parameters: int,
    tried: list[RunRecord],
    norm_runs: list[list[RunRecord]],
    input_runs: list[list[RunRecord]],
    notes: tuple[str, ...],
    processes: int,
    seconds: float,
) -> StudyRecord:
    """Return the record of a study: its runs, and what follows from them.

    Args:
        options, bench, schemes: what was compared.
        model, parameters: its name, and how many parameters it has with the first norm.
        tried: the runs that chose the learning rates.
        norm_runs, input_runs: the runs of each setting, over all seeds.
        notes: what is known before.
        processes, seconds: how it was computed.

    Raises:
        ModelError: every run failed.
    """
    final = [run for runs in norm_runs for run in runs]
    if all(run.status == "failed" for run in final):
        raise ModelError(f"All {len(final)} runs failed", final[0].reason, "mend the model")
    data, rules, samples = bench.data, bench.rules, len(bench.data.split.test)
    words, differences = verdict(norm_runs, samples)
    input_words, input_differences = inputs_verdict(input_runs, samples)
    labels = data.y[data.split.validation]
    chance = float(np.bincount(labels).max()) / len(labels)
    searches = describe(tried, rules, chance)
    every = list(dict.fromkeys(run for runs in norm_runs + input_runs for run in runs))
    return StudyRecord(
        verdict=words,
        rates_verdict=rates_verdict([found for found in searches if found.scheme == options.scheme]),
        inputs_verdict=input_words,
        data=describe_data(data),
        model=model,
        parameters=parameters,
        norms=options.norms,
        batch_sizes=options.batch_sizes,
        seeds=tuple(range(options.seeds)),
        search_seeds=tuple(options.search_seeds),
        epochs=rules.epochs,
        target=rules.target,
        scheme=options.scheme,
        schemes=schemes,
        inputs_norm=options.inputs_norm,
        inputs_batch_size=options.inputs_batch_size,
        cells=tuple(cell(runs, 1 / samples, rules) for runs in norm_runs),
        inputs=tuple(cell(runs, 1 / samples, rules) for runs in input_runs),
        searches=searches,
        curves=tuple(c for runs in norm_runs if (c := curve(runs)) is not None),
        inputs_curves=tuple(c for runs in input_runs if (c := curve(runs)) is not None),
        differences=differences + input_differences,
        method=method.describe(options, data, processes),
        notes=data.notes + notes + tuple(edge_notes(searches, options.scheme)) + run_notes(every),
        runs=(*every, *tried),
        seconds=seconds,
    )


def describe_data(data: Dataset) -> DataRecord:
    """Return what a report says about a data set."""
    split = data.split
    return DataRecord(
        name=data.name,
        samples=len(data.y),
        shape=tuple(int(size) for size in data.sample_shape),
        classes=data.classes,
        train=len(split.train),
        validation=len(split.validation),
        test=len(split.test),
        axes=data.axes,
        raw_range=(float(data.x.min()), float(data.x.max())),
    )


def run_notes(runs: list[RunRecord]) -> tuple[str, ...]:
    """Return notes on the runs: initial weights that differ, failures and warnings."""
    notes: dict[str, None] = {}
    for seed in dict.fromkeys(run.seed for run in runs):
        weights = {run.weights for run in runs if run.seed == seed and run.weights}
        if len(weights) > 1:
            notes["Initial weights differ between norms: build(norm) draws other weights for each."] = None
    for run in runs:
        where = f"{norm_label(run.norm)}, batch size {run.batch_size}, {scheme_label(run.scheme)} inputs"
        where = where[:1].upper() + where[1:]
        if run.status != "done":
            notes[f"{where}: {run.status}. {run.reason}"] = None
        for text in run.notes:
            notes[f"{where}: {text}"] = None
    return tuple(notes)
