from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from samdeblur.evaluation.tables import bootstrap
from samdeblur.evaluation.tables.bootstrap import mean_of_rates, percentiles, resampled_means, wilson


@pytest.mark.parametrize("images", [5, 40, 1000])
def test_intervals_are_those_of_scipy(images):
    rng = np.random.default_rng(images)
    values = np.stack([rng.normal(30, 3, images), rng.exponential(2, images)], axis=1)
    means = resampled_means(values, 20_000, 1)
    for column in range(2):
        reference = stats.bootstrap(
            (values[:, column],), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
        )
        off = np.subtract(percentiles(means[:, column]), reference.confidence_interval)
        assert np.abs(off).max() < 0.1 * reference.standard_error
        assert means[:, column].std() == pytest.approx(reference.standard_error, rel=0.03)


def test_all_columns_see_the_same_draws():
    one, other = np.random.default_rng(0).normal(size=(2, 50))
    means = resampled_means(np.stack([one, other, one - other], axis=1), 500, 3)
    np.testing.assert_allclose(means[:, 0] - means[:, 1], means[:, 2], atol=1e-12)


def test_the_seed_alone_decides(monkeypatch):
    values = np.random.default_rng(0).normal(size=(30, 2))
    means = resampled_means(values, 700, 5)
    monkeypatch.setattr(bootstrap, "_DRAWN", 1000)
    np.testing.assert_array_equal(resampled_means(values, 700, 5), means)
    assert (resampled_means(values, 700, 6) != means).any()
    assert (resampled_means(values, 700, (5, 1)) != means).any()


def test_equal_values_have_no_width():
    assert percentiles(resampled_means(np.full((7, 1), 0.1), 200, 0)[:, 0]) == pytest.approx((0.1, 0.1))


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(4)
    samples = rng.exponential(1, (150, 400))  # images, trials
    means = resampled_means(samples, 1000, 0)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    assert 0.90 < np.mean((low < 1) & (high > 1)) < 0.98


@pytest.mark.parametrize(("events", "images"), [(0, 1), (1, 1), (0, 980), (77, 3000), (216, 395), (395, 395)])
def test_intervals_of_rates_are_those_of_wilson(events, images):
    reference = stats.binomtest(events, images).proportion_ci(method="wilson")
    assert wilson(events / images, images) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_the_interval_of_a_mean_of_rates_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    truth, images, weights = np.array([0.02, 0.5, 0.0]), [200, 60, 300], [1, 1, 2]
    mean = float(np.average(truth, weights=weights))
    hits = 0
    for _ in range(1000):
        low, high = mean_of_rates(rng.binomial(images, truth) / images, images, weights)
        hits += low <= mean <= high
    assert 0.93 < hits / 1000 < 0.985
    assert mean_of_rates([0.25], [40], [7]) == pytest.approx(wilson(0.25, 40))


def test_a_rate_of_zero_is_not_taken_for_certain():
    assert wilson(0, 980)[0] == 0
    assert 0.003 < wilson(0, 980)[1] < 0.005
    assert 0.001 < mean_of_rates([0, 0], [980, 3000], [1, 1])[1] < 0.003
