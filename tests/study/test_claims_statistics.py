"""The claims on inputs, modes and noise: against plain computations, and with the effect taken away."""

import math
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

import slabnorm as sn
from slabnorm.errors import DataError
from slabnorm.report.claims import FAILS, HOLDS
from slabnorm.report.study import CurvePoint
from slabnorm.study import networks
from slabnorm.study.claims import (
    explode,
    leakage,
    modes,
    regularise,
    running,
    saturate,
    scale,
    style,
    verdict,
)
from slabnorm.study.claims.claim import Material
from slabnorm.study.claims.family import identities
from slabnorm.study.claims.first_layer import KAIMING, RULES, few, rows, samples, seeded
from slabnorm.study.claims.undo import undone
from slabnorm.study.data import photos
from slabnorm.study.models import NormFactory
from slabnorm.study.trials import Trial, TrialRecord, Trials
from slabnorm.study.watch import MATES
from tests.study.small import few_digits, table

pytestmark = pytest.mark.usefixtures("in_plain_torch")

PHOTOS = photos().subset(100, 50)


def material(data=None, pixels=PHOTOS, train=None):
    return Material(few_digits() if data is None else data, pixels, None, (0, 1, 2), True, train)


def found(name, given):
    return import_module(f"slabnorm.study.claims.{name}").measure(given)


def decided(name, given):
    return verdict(found(name, given).tests)


def scaled_photos():
    """The photographs as z-scores: with these nothing is too large."""
    x = PHOTOS.x.astype(np.float64)
    return replace(PHOTOS, x=(x - x.mean()) / x.std(), value_range=(-3.0, 3.0))


def record(end, seen=None, steps=100):
    """A training whose validation accuracy rises on a straight line to `end`, its test accuracy too."""
    curve = tuple(CurvePoint(step, step / steps, end * step / steps, 1.0) for step in (steps // 2, steps))
    return TrialRecord("done", end, 0.0, curve, seen or {}, 0.0)


class TestInputs:
    def test_samples_lie_evenly_over_the_training_split(self):
        chosen = few(PHOTOS, 10)
        assert len(chosen) == 10
        assert set(chosen) <= set(PHOTOS.split.train)
        assert set(PHOTOS.y[chosen]) == {0, 1}

    def test_pre_activations_are_pixels_times_weights(self):
        x = PHOTOS.x[few(PHOTOS, 20)].reshape(20, -1).astype(np.float64)
        weights = RULES[KAIMING](scale.UNITS, x.shape[1], seeded(3, 1)).numpy()
        z = scale.pre_activations(rows(PHOTOS, "raw", 20), RULES[KAIMING], 3)
        np.testing.assert_allclose(z.numpy(), np.abs(x @ weights.T), atol=1e-9)

    @pytest.mark.parametrize(("rule", "variance"), [(KAIMING, 2 / 300), ("PyTorch's default", 1 / 900)])
    def test_rules_have_their_variance(self, rule, variance):
        weights = RULES[rule](200, 300, seeded(0, 1))
        assert weights.var().item() == pytest.approx(variance, rel=0.02)

    def test_scale_and_saturate_need_raw_pixels(self):
        assert decided("scale", material()) == HOLDS
        assert decided("scale", material(pixels=scaled_photos())) == FAILS
        raw, scaled = (found("saturate", material(pixels=p)).tests for p in (PHOTOS, scaled_photos()))
        assert [test.verdict for test in raw if test.unit == "%"] == [HOLDS] * 4
        assert [test.verdict for test in scaled if test.unit == "%"] == [FAILS] * 4

    def test_the_gradient_that_reaches_the_first_layer(self):
        x, y = rows(PHOTOS, "zscore", 12), torch.as_tensor(PHOTOS.y[few(PHOTOS, 12)])
        first = RULES[KAIMING](saturate.UNITS, x.shape[1], seeded(5, 1)).numpy()
        last = RULES[KAIMING](2, saturate.UNITS, seeded(5, 2)).numpy()
        s = 1 / (1 + np.exp(-(x.numpy() @ first.T)))
        scores = s @ last.T
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        signal = (shares - np.eye(2)[y]) / len(y) @ last * s * (1 - s)
        backward = saturate.backward(x, y, 2, "sigmoid", 5)
        np.testing.assert_allclose(backward.signal.numpy(), signal, rtol=1e-9, atol=1e-18)
        np.testing.assert_allclose(backward.weight.numpy(), signal.T @ x.numpy(), rtol=1e-9, atol=1e-15)
        assert backward.dead == (s * (1 - s) < 1e-3).mean()

    def test_size_by_depth(self):
        x = rows(PHOTOS, "raw", 4)
        generator, expected, values = seeded(0, 3), [], x.numpy()
        for _ in range(explode.DEPTH):
            values = np.maximum(values @ RULES[KAIMING](256, values.shape[1], generator).numpy().T, 0)
            expected.append(np.sqrt((values**2).mean()))
        np.testing.assert_allclose(explode.by_depth(x, RULES[KAIMING], False, seeded(0, 3)), expected)

    def test_growth_is_a_matter_of_the_weights_alone(self):
        x = rows(PHOTOS, "raw", 4)

        def larger(*shape):
            return 2 * RULES[KAIMING](*shape)

        small, large = (explode.by_depth(size * x, larger, False, seeded(0, 3)) for size in (0.01, 1.0))
        assert small[-1] / small[0] == pytest.approx(large[-1] / large[0])
        assert large[-1] / large[0] > 2**17
        normed = explode.by_depth(x, larger, True, seeded(0, 3))
        assert 0.5 < normed[-1] < 0.9


class TestLeakage:
    def test_the_classifier_takes_the_nearest_class_mean(self):
        data = few_digits()
        parts, some = leakage.parts_of(data), torch.arange(40)
        x = parts.x[some].numpy()
        std = np.where(x.std(0) > 0, x.std(0), 1)
        scaled, test = (x - x.mean(0)) / std, (parts.test.numpy() - x.mean(0)) / std
        centres = np.stack([scaled[parts.y[some] == label].mean(0) for label in range(4)])
        nearest = np.square(test[:, None] - centres).sum(2).argmin(1)
        assert leakage.results(parts, some)[0] == pytest.approx((nearest == parts.truth.numpy()).mean())

    def test_without_another_camera_there_is_nothing_to_hide(self):
        parts = leakage.parts_of(few_digits())
        assert leakage.refuses(parts)
        honest, leaked, shifted, hidden = leakage.results(parts, torch.arange(80))
        assert hidden - shifted > 0.2
        same = leakage.results(parts._replace(shifted=parts.test), torch.arange(80))
        assert same[2:] == (honest, leaked)

    def test_a_table(self):
        assert len(found("leakage", material(data=few_digits())).tests) == 2


class TestLayers:
    def test_undo(self):
        x = samples(PHOTOS, "raw", 8)
        after, before = undone(x, torch.float64)
        assert after < 4
        assert before > 1e12

    def test_style(self):
        x = samples(PHOTOS, "raw", 8)
        kernels = torch.randn(2, 1, 3, 3, generator=seeded(0, 4), dtype=x.dtype)
        styled = style.restyled(x, seeded(0, 5))
        maps = nn.functional.conv2d(torch.cat([x, styled]), kernels).numpy()
        expected = np.linalg.norm(maps[8:] - maps[:8]) / np.linalg.norm(maps[:8] - maps[:8].mean())
        assert style.change(x, styled, "none", kernels) == pytest.approx(expected)
        assert style.change(x, styled, "batch", kernels) > 0.1
        assert style.change(x, styled, "instance", kernels) < 1e-3
        # One contrast and brightness for all images is what batch norm removes too.
        assert style.change(x, 2 * x + 30, "batch", kernels) < 1e-3

    def test_family(self):
        x = torch.randn(3, 6, 4, 4, dtype=torch.float64, generator=seeded(0, 6)) + 5
        assert len(identities(x)) == 3
        assert max(identities(x).values()) < 1e-12

    def test_images_are_needed(self):
        pixels = replace(PHOTOS, x=PHOTOS.x.reshape(len(PHOTOS.x), -1))
        for name in ("undo", "style", "family"):
            with pytest.raises(DataError, match="about images"):
                found(name, material(pixels=pixels))


class TestRunning:
    def test_against_the_recursion(self):
        z = torch.randn(96, 3, dtype=torch.float64, generator=seeded(0, 1)) * 2 + 5
        parts = running.batches(len(z), 5, seeded(0, 8))
        mean, var = np.zeros(3), np.ones(3)
        for part in parts:
            batch = z[part].numpy()
            mean, var = 0.9 * mean + 0.1 * batch.mean(0), 0.9 * var + 0.1 * batch.var(0, ddof=1)
        std = z.numpy().std(0)
        of_mean = np.sqrt((((mean - z.numpy().mean(0)) / std) ** 2).mean())
        of_std = np.sqrt(((np.sqrt(var) / std - 1) ** 2).mean())
        np.testing.assert_allclose(running.follow(z, 0.1, parts)[-1], (of_mean, of_std), rtol=1e-5)

    def test_an_average_over_all_batches_is_exact_after_each_pass(self):
        z = torch.randn(96, 3, dtype=torch.float64, generator=seeded(0, 1)) * 2 + 5
        found = running.follow(z, None, running.batches(len(z), 6, seeded(0, 8)))
        assert found[3][0] < 1e-6
        assert found[4][0] > 1e-3
        assert found[6][0] < 1e-6


class TestModes:
    def test_only_batch_norm_in_train_mode_looks_at_the_mates(self):
        x = samples(few_digits(), "zscore", 40).float()
        model = modes.network(few_digits(), 0)
        in_train, in_eval = modes.moved(model, x, 8)
        assert in_train > 0.01
        assert in_eval == 0
        layer = networks.conv(NormFactory("layer"), 1, 4)
        assert modes.moved(layer, x, 8)[0] < 1e-5

    def test_watchers_look_once_after_the_last_step(self):
        data = few_digits()
        done = Trials(data, None).do(
            Trial(batch_size=32, norm="none", watch=("forgotten", "fit")), lambda: None
        )
        *before, forgotten = done.seen["forgotten"]
        assert not any(before)
        assert forgotten == [0.0] * 2 * len(MATES)  # without a norm the modes are the same
        *before, fit = done.seen["fit"]
        assert not any(before)
        assert fit[2] == done.accuracy
        batch = Trials(data, None).do(Trial(batch_size=32, norm="batch", watch=("forgotten",)), lambda: None)
        assert any(batch.seen["forgotten"][-1])

    def test_verdict(self):
        def train(trials):
            return [record(0.9, {"forgotten": [[], [-0.5] * 14]}) for _ in trials]

        for data in (few_digits(), few_table()):
            assert decided("modes", material(data, train=train)) == HOLDS


def few_table():
    from slabnorm.study.data import from_arrays

    return from_arrays(*table())


class TestChannels:
    def test_every_pixel_has_statistics_of_its_own(self):
        layer = networks.PerPixel(sn.BatchNorm, (2, 3, 4))
        x = torch.randn(5, 2, 3, 4, generator=seeded(0, 1))
        expected = nn.BatchNorm1d(24)(x.flatten(1)).unflatten(1, (2, 3, 4))
        torch.testing.assert_close(layer(x), expected)

    def test_the_networks_start_from_the_same_weights(self):
        kinds = []
        for build in (
            lambda norm: networks.conv(norm, 1, 4),
            lambda norm: networks.conv_per_pixel(norm, (1, 9, 7), 4),
        ):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                kinds.append(build(NormFactory("batch")))
        weights = [[m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)] for net in kinds]
        assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
        assert kinds[1].train()(torch.randn(3, 1, 9, 7, generator=seeded(0, 1))).shape == (3, 4)

    def test_verdict(self):
        def train(trials, better="conv"):
            return [record(0.9 if trial.network == better else 0.8) for trial in trials]

        assert decided("channels", material(train=train)) == HOLDS
        assert decided("channels", material(train=lambda t: train(t, "conv per pixel"))) == FAILS
        with pytest.raises(DataError, match="about images"):
            found("channels", material(few_table()))


class TestTrained:
    def test_steps_to_an_accuracy_lie_on_straight_lines(self):
        assert record(0.8).steps_to(0.2) == pytest.approx(25)
        assert record(0.8).steps_to(0.6) == pytest.approx(75)
        assert math.isinf(record(0.8).steps_to(0.9))

    def test_schemes(self):
        given = replace(few_digits(), value_range=(0.0, 16.0))

        def train(trials, slow="raw"):
            return [record(0.9, steps=1000 if trial.scheme == slow else 100) for trial in trials]

        assert decided("schemes", material(given, train=train)) == HOLDS
        assert decided("schemes", material(given, train=lambda t: train(t, "zscore"))) == FAILS

    def test_the_noise_of_a_batch_mean(self):
        z = torch.randn(500, 8, dtype=torch.float64, generator=seeded(0, 1))
        noises = regularise.noise(z, seeded(0, 12))
        np.testing.assert_allclose(noises, np.array(regularise.SIZES) ** -0.5, rtol=0.15)
        assert regularise.slope(noises) == pytest.approx(-0.5, abs=0.05)
        assert regularise.slope([0.1] * len(noises)) == pytest.approx(0)

    def test_regularise(self):
        def train(trials, norm="batch"):
            small = [trial.norm == norm and trial.batch_size == 8 for trial in trials]
            return [record(0.9, {"fit": [[], [0.6 if s else 0.95, 0.1, 0.5, 0.3]]}) for s in small]

        assert decided("regularise", material(train=train)) == HOLDS
        assert decided("regularise", material(train=lambda t: train(t, "layer"))) == FAILS
