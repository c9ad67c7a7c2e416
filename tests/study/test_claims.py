"""The claims: their table, what they share, and that an interrupted study goes on."""

import contextlib
import io
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import slabnorm as sn
from slabnorm.cli import app
from slabnorm.errors import DataError, LedgerError, OptionError
from slabnorm.report.claims import FAILS, HOLDS, UNDECIDED
from slabnorm.report.claims import Test as Inequality
from slabnorm.report.study import Interval
from slabnorm.study.claims import CLAIMS, digest, find, train, verdict, windows
from slabnorm.study.data import from_arrays
from slabnorm.study.ledger import RunLedger
from slabnorm.study.text import english
from slabnorm.study.trials import Trial, Trials
from slabnorm.study.workers import team
from tests.study.small import few_digits

pytestmark = pytest.mark.usefixtures("in_plain_torch")


@pytest.fixture(scope="module")
def text():
    return windows(english(2_000))


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_whole_and_its_example_runs(name):
    claim = find(name)
    assert claim.question.endswith("?") or "?" in claim.question
    assert claim.claim.endswith(".")
    assert claim.explanation.count(".") >= 2
    assert re.search(r"https?://\S+", claim.source)
    assert len(claim.example.splitlines()) <= 14
    said = io.StringIO()
    with contextlib.redirect_stdout(said), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(compile(claim.example, name, "exec"), {"__name__": name})
    assert said.getvalue().strip()


def test_every_file_is_a_claim_of_the_table():
    folder = Path(import_module("slabnorm.study.claims").__file__).parent
    claims = {
        path.stem for path in folder.glob("*.py") if "\nCLAIM = Claim(" in path.read_text(encoding="utf-8")
    }
    assert claims == set(CLAIMS)


def test_a_claim_that_is_none_is_refused():
    with pytest.raises(OptionError, match=r"There is no claim fastr(.|\n)*did you mean 'faster'"):
        sn.claims("fastr")
    for option in ({"seeds": 0}, {"workers": 0}, {"seeds": True}):
        with pytest.raises(OptionError, match="1 or more"):
            sn.claims("unit", **option)
    for option in ({"seed": -1}, {"seed": 0.5}):
        with pytest.raises(OptionError, match="seed must be"):
            sn.claims("unit", **option)
    with pytest.raises(OptionError, match="names must not be empty"):
        sn.claims([])
    with pytest.raises(DataError, match="No such file"):
        sn.claims("unit", "nosuchfile.npz")


def test_all_tests_must_hold_and_one_that_fails_decides():
    def one(low, high):
        return Inequality("", Interval(0.0, low, high, 3), 0.0)

    holds, fails, undecided = one(0.1, 0.2), one(-0.2, -0.1), one(-0.1, 0.1)
    assert verdict([holds, holds]) == HOLDS
    assert verdict([holds, undecided]) == UNDECIDED
    assert verdict([undecided, fails, holds]) == FAILS


def test_windows_lie_side_by_side_and_no_letter_is_in_two_splits(text):
    whole = english(2_000)
    n = len(text.split.train)
    assert torch.equal(text.codes[:n, :-1].flatten(), whole.train[: n * (text.codes.shape[1] - 1)])
    # The last letter of a window is the first of the next: it is predicted by one and seen by the other.
    assert torch.equal(text.codes[: n - 1, -1], text.codes[1:n, 0])
    every = np.concatenate([text.split.train, text.split.validation, text.split.test])
    assert every.tolist() == list(range(len(text.codes)))
    assert whole.decode(text.codes[text.split.test[0]]) in whole.decode(whole.test)


def test_a_trial_that_two_claims_ask_for_is_trained_once(text):
    steps = []
    trials = [Trial(epochs=1, batch_size=32, seed=seed) for seed in (0, 1)]
    with team(Trials(few_digits(), text), 1, progress=lambda *both: steps.append(both)) as together:
        first = train(together, trials)
        again = train(together, [trials[1], trials[0], Trial(epochs=1, batch_size=32, seed=2)])
    assert again[:2] == first[::-1]
    assert sum(done for done, _ in steps) == steps[-1][1] == 3 * 3  # 90 samples in batches of 32


def test_an_interrupted_study_goes_on_with_what_is_done(text, tmp_path):
    trials = [Trial(epochs=1, batch_size=32, seed=seed, watch=("gradient",)) for seed in range(3)]
    work, done = Trials(few_digits(), text), 0
    with team(work, 1) as together:
        whole = train(together, trials)

    def press(steps, _):
        nonlocal done
        done += steps
        if done > 4:
            raise KeyboardInterrupt

    path = tmp_path / "claims.html.ledger"
    ledger = RunLedger(path, resume=False)
    with pytest.raises(KeyboardInterrupt), team(work, 1, progress=press, ledger=ledger) as together:
        train(together, trials)
    ledger.close()
    with pytest.raises(LedgerError, match="resume=True"):
        RunLedger(path, resume=False)
    ledger, counted = RunLedger(path, resume=True), []
    with team(work, 1, progress=lambda n, _: counted.append(n), ledger=ledger) as together:
        resumed = train(together, trials)
    ledger.close()
    assert counted[0] == 3  # the one trial that was done
    for new, old in zip(resumed, whole, strict=True):
        assert (new.accuracy, new.curve, new.seen) == (old.accuracy, old.curve, old.seen)


def test_claims_that_the_data_say_nothing_on_are_left_out_with_a_note():
    table = few_digits().x.reshape(-1, 64), few_digits().y
    found = sn.claims(["unit", "channels", "undo"], table, quick=True)
    assert [claim.id for claim in found.claims] == ["unit", "undo"]
    assert found.notes[-1].startswith("channels: left out. ")
    with pytest.raises(DataError, match="channels"):
        sn.claims("channels", table, quick=True)


def test_other_data_or_another_text_are_other_trials(text):
    x, y = np.arange(60.0).reshape(30, 2), np.arange(30) % 2
    one = digest(Trials(from_arrays(x, y), text))
    assert one == digest(Trials(from_arrays(x.copy(), y), text))
    others = [(x + 1, y, text), (x, 1 - y, text), (x, y, windows(english(2_100)))]
    assert one not in [digest(Trials(from_arrays(a, b), c)) for a, b, c in others]


def test_the_command_shows_a_claim_and_refuses_what_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["claims", "unit", "--show", "--quick", "--json", "c.json"])
    assert found.exit_code == 0, found.output
    assert "def measure(material" in found.output
    assert "1 claim on scikit-learn digits: 1 holds." in found.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.json", "claims.html"]
    wrong = CliRunner().invoke(app, ["claims", "unity"])
    assert wrong.exit_code == 2
    assert "There is no claim unity" in wrong.output
    none = CliRunner().invoke(app, ["claims", "unit", "--data", "fashion-mnits"])
    assert none.exit_code == 2
    assert "did you mean 'fashion-mnist'" in none.output.replace("\n", " ")


def test_what_is_looked_at_at_the_end_is_seen_once_even_if_the_training_diverges(text):
    usual = Trial(batch_size=32, epochs=1, norm="batch", watch=("gradient", "forgotten", "fit"))
    with team(Trials(few_digits(), text), 1) as together:
        done, diverged = train(together, [usual, replace(usual, norm="none", rate=1e30)])
    assert (done.status, diverged.status) == ("done", "diverged")
    assert [len(done.seen[name]) for name in ("gradient", "forgotten", "fit")] == [len(done.curve) + 1, 1, 1]
    assert [len(diverged.seen[name][0]) for name in ("forgotten", "fit")] == [14, 4]
    assert done.seen["fit"][0][2] == pytest.approx(done.accuracy)
