"""Rooms 2 to 5: they compute what torch and slabnorm compute, and show what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from torch import nn

import slabnorm as sn
from slabnorm.page import build
from slabnorm.page.samples import samples
from slabnorm.report.claims import (
    FAILS,
    HOLDS,
    UNDECIDED,
    ClaimRecord,
    ClaimsRecord,
    Number,
    Picture,
    Series,
    SweepRecord,
)
from slabnorm.report.claims import Test as Inequality
from slabnorm.report.study import DataRecord, Interval
from tests.page.conftest import opened

HOSTILE = "<img src=x onerror=\"document.body.dataset.hit='yes'\">"
UNITS = 256
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return samples()


# ---------------------------------------------------------------- the input


def torchs_weights(rule: str, inputs: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A first layer as a user of torch makes it."""
    torch.manual_seed(seed)
    if rule == "default":
        layer = nn.Linear(inputs, UNITS)
        return layer.weight.detach(), layer.bias.detach()
    weight = torch.empty(UNITS, inputs)
    if rule == "kaiming":
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
    else:
        nn.init.normal_(weight, 0, 0.1)
    return weight, torch.zeros(UNITS)


DRAW = """async ([rule, inputs, seed]) => {
  const { weight, bias } = (await import("slabnorm/input")).drawWeights(rule, inputs, seed);
  return { weight: [...weight], bias: [...bias] };
}"""


def test_a_bound_is_said_on_its_side(shared: Page) -> None:
    say = 'async (test) => (await import("slabnorm/recall")).testSentence(test)'
    test = {"what": "error", "value": {"mean": 0.5, "low": None, "high": None}, "bound": 2, "unit": ""}
    assert shared.evaluate(say, {**test, "below": True}) == "error: 0.5; it must stay below 2"
    assert shared.evaluate(say, {**test, "below": False}) == "error: 0.5; it must exceed 2"


@pytest.mark.parametrize("rule", ["default", "kaiming", "normal"])
def test_the_browser_draws_the_weights_that_torch_draws(shared: Page, rule: str) -> None:
    for inputs, seed in ((64, 0), (784, 7)):
        drawn = shared.evaluate(DRAW, [rule, inputs, seed])
        weight, bias = torchs_weights(rule, inputs, seed)
        torch.testing.assert_close(torch.tensor(drawn["weight"]).view_as(weight), weight, rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.tensor(drawn["bias"]).float(), bias, rtol=0, atol=1e-6)


MEASURE = """async ([pictures, range, weight, bias]) => {
  const room = await import("slabnorm/input");
  const stats = room.statistics(pictures);
  return Object.fromEntries(["raw", "fixed", "minmax", "zscore"].map((scheme) => {
    const pre = room.preactivations(pictures, room.affine(scheme, stats, range), { weight, bias });
    const all = Object.keys(room.ACTIVATIONS).map((name) => [name, room.measure(pre, name)]);
    return [scheme, Object.fromEntries(all)];
  }));
}"""


@pytest.mark.parametrize("which", ["photos", "digits"])
def test_saturation_and_gradient_are_those_of_torch(shared: Page, made: dict[str, Any], which: str) -> None:
    data = made[which]
    pixels = torch.tensor(data["pixels"], dtype=torch.float64)
    weight, bias = (tensor.double() for tensor in torchs_weights("default", pixels.shape[1], 3))
    given = [data["pixels"], data["range"], weight.flatten().tolist(), bias.tolist()]
    found = shared.evaluate(MEASURE, given)
    schemes = {"fixed": sn.FixedScale(*data["range"]), "minmax": sn.MinMax(), "zscore": sn.ZScore()}
    inputs = {name: sn.fit(pixels, how, "n p -> ", split="train")(pixels) for name, how in schemes.items()}
    for scheme, x in {"raw": pixels, **inputs}.items():
        for name, activation in (("sigmoid", torch.sigmoid), ("tanh", torch.tanh), ("relu", torch.relu)):
            pre = (x @ weight.T + bias).requires_grad_()
            activation(pre).sum().backward()
            slope = pre.grad
            assert slope is not None
            flat = slope < 1e-3
            expected = {
                "flat": flat.double().mean().item(),
                "dead": flat.all(0).double().mean().item(),
                "gradient": slope.mean().item(),
            }
            measured = {key: found[scheme][name][key] for key in expected}
            assert measured == pytest.approx(expected, rel=0, abs=1e-9), (scheme, name)
    # Photographs through raw weights saturate, and digits of 0 to 16 hardly do.
    assert (found["raw"]["sigmoid"]["flat"] > 0.8) == (which == "photos")


# ---------------------------------------------------------------- batch mates


def library_network(made: dict[str, Any]) -> nn.Sequential:
    """The exported network, of torch's and slabnorm's layers."""
    net = made["network"]
    norm = sn.BatchNorm(len(net["norm"]["weight"]), eps=net["norm"]["eps"])
    layers = [
        nn.Linear(64, len(net["norm"]["weight"])),
        norm,
        nn.ReLU(),
        nn.Linear(len(net["norm"]["weight"]), 10),
    ]
    for layer, values in zip(
        (layers[0], norm, layers[3]), (net["hidden"], net["norm"], net["output"]), strict=True
    ):
        tensors = {name: torch.tensor(value) for name, value in values.items() if isinstance(value, list)}
        if layer is norm:
            tensors["num_batches_tracked"] = torch.tensor(len(net["trace"]["batch_mean"][0]))
        layer.load_state_dict(tensors)
    return nn.Sequential(*layers)


BATCH = """async (pictures) => {
  const room = await import("slabnorm/mates");
  const { network, digits } = JSON.parse(document.getElementById("study").textContent).samples;
  const both = (take) => Object.fromEntries(["train", "eval"].map((mode) => [mode, take(mode)]));
  const { trace, norm } = network;
  return {
    logits: both((mode) => room.logits(network, pictures, mode)),
    accuracy: both((mode) => room.accuracy(network, digits, mode, 8)),
    mean: trace.batch_mean.map((batch) => room.running(batch, norm.momentum, 0).at(-1)),
    variance: trace.batch_var.map((batch) => room.running(batch, norm.momentum, 1).at(-1)),
  };
}"""


@pytest.mark.usefixtures("in_plain_torch")
def test_batch_norm_is_slabnorms_in_both_modes(shared: Page, made: dict[str, Any]) -> None:
    model = library_network(made)
    test, labels = torch.tensor(made["digits"]["test"]) / 16, torch.tensor(made["digits"]["labels"])
    found = shared.evaluate(BATCH, made["digits"]["test"][:8])
    units, norm = made["network"]["trace"]["units"], made["network"]["norm"]
    assert found["mean"] == pytest.approx([norm["running_mean"][unit] for unit in units], abs=1e-5)
    assert found["variance"] == pytest.approx([norm["running_var"][unit] for unit in units], abs=1e-5)
    # With gradients: without them, slabnorm would warn of train mode.
    expected = {"eval": model.eval()(test[:8]), "train": model.train()(test[:8])}
    for mode, y in expected.items():
        np.testing.assert_allclose(found["logits"][mode], y.detach().numpy(), rtol=0, atol=1e-5)
    answers = torch.cat([model(part).argmax(1) for part in test.split(8)])
    assert found["accuracy"]["train"] == pytest.approx((answers == labels).double().mean().item(), abs=1e-12)
    assert found["accuracy"]["eval"] > found["accuracy"]["train"] + 0.02


def test_samples_are_the_same_each_time(made: dict[str, Any]) -> None:
    torch.manual_seed(5)
    assert samples() == made


# ---------------------------------------------------------------- a study that was made up, for tests only


def claim(name: str, verdict: str) -> ClaimRecord:
    value = Interval(3.5, 3.0, 4.0, 3)
    curve = Series(HOSTILE, (1.0, 8.0, 32.0), (0.2, None, 0.9), (0.1, None, 0.8), (0.3, None, 1.0))
    names = Series("slope", ("raw", HOSTILE), (0.1, 2.0))
    return ClaimRecord(
        id=name,
        claim=f"the claim {name}",
        question=f"What do you expect of {name}?",
        measured=f"the measurement of {name} {HOSTILE}",
        tests=(Inequality("a ratio", value, 2.0, "x"),),
        verdict=verdict,
        numbers=(Number("a share", Interval(0.25, None, None, 1), "%"),),
        pictures=(
            Picture("a curve", "batch size", "accuracy", (curve,), log="x", marks=(("chance", 0.1),)),
            Picture("columns", "input", "slope", (names,), kind="bars"),
        ),
        explanation="the explanation",
        source="a paper of 2015",
        example="import slabnorm as sn",
        code="",
        setting=(),
        seconds=1.0,
    )


def swept(norm: str, batch: int, status: str = "done") -> SweepRecord:
    loss = (2.3, 1.0, 0.5) if status == "done" else (2.3, None, None)
    return SweepRecord(
        norm=norm,
        batch_size=batch,
        rate=0.1,
        depth=3,
        gain=1.0,
        status=status,
        accuracy=0.875,
        steps=(1, 10, 20),
        loss=loss,
        validation=(0.1, 0.5, 0.9),
        drift=(0.1, 0.2, 0.4),
        gradient=(1.0, 0.1, 0.01),
    )


VERDICTS = {
    "saturate": HOLDS,
    "shift": UNDECIDED,
    "undo": HOLDS,
    "learn": FAILS,
    "modes": HOLDS,
    "running": HOLDS,
    "channels": FAILS,
    "small": HOLDS,
    "faster": FAILS,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with a study."""
    data = DataRecord(HOSTILE, 1797, (1, 8, 8), (HOSTILE, "1"), 1078, 359, 360, "", (0.0, 16.0))
    claims = tuple(claim(name, verdict) for name, verdict in VERDICTS.items())
    # Group norm was not run with a batch of 2.
    sweep = (
        swept("batch", 2),
        swept("batch", 32),
        swept("none", 2, "diverged"),
        swept("none", 32),
        swept("group", 32),
    )
    record = ClaimsRecord(data, claims, sweep, (0, 1, 2), (), (), 1.0)
    path = tmp_path_factory.mktemp("study") / "lab.html"
    path.write_text(build(record.as_dict()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def watched(browser: Browser, study: Path) -> Iterator[Page]:
    with opened(browser, study, viewport={"width": 1200, "height": 900}) as page:
        yield page


def enter(page: Page, room: str) -> None:
    page.evaluate("(room) => (location.hash = room)", room)
    expect(page.locator(f".room-{room} h1")).to_be_visible()


def test_scaling_the_input_brings_the_slope_back(watched: Page) -> None:
    page = watched
    enter(page, "input")
    found = page.locator(".found")
    raw = found.text_content()
    page.get_by_label("Z-score").check()
    assert "Z-score input, sigmoid: the slope is below 0.001 in 0% of all" in (found.text_content() or "")
    page.get_by_label("ReLU").check()
    page.get_by_label("Digits").check()
    page.get_by_label("Kaiming").check()
    assert (
        page.locator("code").text_content()
        == "torch.manual_seed(0); torch.empty(256, 64).normal_(0, (2 / 64) ** 0.5)"
    )
    page.get_by_label("Picture", exact=True).fill("40")
    page.get_by_role("button", name="Draw the weights again").click()
    assert "manual_seed(1)" in (page.locator("code").text_content() or "")
    assert found.text_content() != raw


def test_mates_move_a_sample_in_train_mode_only(watched: Page) -> None:
    page = watched
    enter(page, "mates")
    chart, found = page.locator(".room-mates svg").first, page.locator(".found").first
    for mode, moves in (("Train", True), ("Eval", False)):
        page.get_by_label(mode, exact=True).check()
        page.get_by_role("button", name="As they came").click()
        before = chart.get_attribute("aria-label")
        page.get_by_label("Their brightness").fill("12")
        assert (chart.get_attribute("aria-label") != before) is moves
    assert "not one probability moves" in (found.text_content() or "")
    page.get_by_role("button", name="Exchange them").click()
    assert page.locator(".room-mates svg").first.get_attribute("aria-label") == before


def test_running_statistics_lag_by_momentum(watched: Page, made: dict[str, Any]) -> None:
    page, trace = watched, made["network"]["trace"]
    enter(page, "mates")
    page.get_by_label("Training step").fill("1")
    page.get_by_label("1", exact=True).last.check()  # momentum 1: the running mean is the last batch's
    words = page.locator(".found").nth(1).text_content() or ""
    shown = float(words.split("the running one ")[1].split(":")[0].replace("\N{MINUS SIGN}", "-"))
    assert shown == pytest.approx(trace["batch_mean"][0][0], rel=1e-2)


def test_a_forgotten_eval_costs_what_the_formula_says(watched: Page, made: dict[str, Any]) -> None:
    page = watched
    enter(page, "mates")
    page.get_by_label("Your guess").fill("55")
    page.get_by_role("button", name="Forget eval()").click()
    words = page.locator(".found").nth(2).text_content() or ""
    # A digit alone in its batch is normalised to 0, and so every digit gets the answer of the bias alone.
    net = made["network"]
    hidden = np.maximum(np.array(net["norm"]["bias"]), 0)
    answer = (np.array(net["output"]["weight"]) @ hidden + np.array(net["output"]["bias"])).argmax()
    share = np.mean(np.array(made["digits"]["labels"]) == answer)
    assert f"one digit at a time, {round(100 * share, 1):g}%; you guessed 55%" in words


def test_two_runs_side_by_side(watched: Page) -> None:
    page = watched
    enter(page, "network")
    a, b = page.get_by_label("Run A"), page.get_by_label("Run B")
    expect(a.get_by_label("batch", exact=True)).to_be_checked()
    expect(b.get_by_label("no norm")).to_be_checked()
    a.get_by_label("Batch size").fill("0")
    expect(b.locator(".status")).to_have_text("Diverged: the loss became infinite or NaN after step 1.")
    expect(a.locator(".status")).to_have_text("Test accuracy 87.5%")
    b.get_by_label("group").check()
    expect(b.locator(".status")).to_have_text("This combination was not run.")
    expect(page.locator(".plots .keys").first).to_contain_text("B: not run")
    b.get_by_role("button", name="Take the nearest: group, batch 32").click()
    expect(b.locator(".status")).to_have_text("Test accuracy 87.5%")
    expect(a.locator("output").first).to_have_text("2")


def test_what_was_measured_decides_the_guess(watched: Page) -> None:
    page = watched
    enter(page, "recall")
    card = page.locator(".room-recall section:visible")
    # In the order of VERDICTS: the guess to make, and what is said of it.
    guesses = [
        ("From very little", "That is what was measured."),
        ("Yes to both", "The data leave it open"),
        ("They could undo it, but", "That is what was measured."),
        ("Running averages, but", "It was measured otherwise."),
        ("Per pixel does as well", "That is what was measured."),
        ("I do not know yet", "No guess"),
        ("It does not hold", "That is what was measured."),
    ]
    for guess, said in guesses:
        expect(card.get_by_text("the measurement of")).to_have_count(0)
        expect(card.get_by_role("button", name="Show what was measured")).to_be_disabled()
        card.get_by_text(guess).click()
        card.get_by_role("button", name="Show what was measured").click()
        expect(card.locator(".found")).to_contain_text(said)
        expect(card.get_by_text("the measurement of").first).to_be_visible()
        card.get_by_role("button", name="Next question").click()
    tally = "4 of 5 guesses as measured; 1 is left open by the data; 1 without a guess. 0 to go."
    expect(page.locator(".room-recall > .status")).to_have_text(tally)


@pytest.mark.parametrize(("width", "theme"), [(1200, "light"), (360, "dark")])
def test_rooms_fit_and_are_accessible(browser: Browser, study: Path, width: int, theme: Any) -> None:
    with opened(browser, study, viewport={"width": width, "height": 900}, color_scheme=theme) as page:
        for room in ("input", "mates", "network", "recall"):
            enter(page, room)
            if room == "mates":
                page.get_by_role("button", name="Forget eval()").click()
            if room == "recall":
                page.locator(".room-recall section:visible input").first.press("Space")
                page.get_by_role("button", name="Show what was measured").press("Enter")
                expect(page.locator("canvas")).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), room
            found = Axe().run(page, options={"runOnly": WCAG})
            assert found.violations_count == 0, (room, found.generate_report())
        assert page.locator("img").count() == 0
        assert page.evaluate("document.body.dataset.hit") is None
        assert HOSTILE in (page.locator(".room-recall").text_content() or "")


def test_without_a_study_it_is_said_how_to_make_one(page: Page) -> None:
    for room in ("network", "recall"):
        enter(page, room)
        expect(page.locator(".card code").first).to_have_text("slabnorm claims --sweep --json study.json")
