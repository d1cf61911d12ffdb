"""The rule of the verdicts, and the matrix of REST's claims."""

import math

import pytest

from rsseglab.errors import UserError
from rsseglab.evaluation.bootstrap import smallest_detectable
from rsseglab.experiments.claims import CLAIMS, NOT_MEASURED, NOT_TESTABLE, Claim, claim_matrix

ABOVE = Claim("more", "abstract", "try", "m", "above", 0.1)
BELOW = Claim("less", "abstract", "try", "m", "below", 0.1)


@pytest.mark.parametrize(
    ("low", "high", "above", "below"),
    [
        (0.11, 0.2, "supported", "not supported"),
        (0.0, 0.09, "not supported", "supported"),
        (0.05, 0.2, "undecided", "undecided"),
        (0.1, 0.2, "undecided", "not supported"),  # "below" wants less than the threshold
        (0.0, 0.1, "not supported", "undecided"),
        (0.1, 0.1, "not supported", "not supported"),
    ],
)
def test_the_whole_interval_decides(low, high, above, below):
    numbers = {"m": ((low + high) / 2, low, high)}
    assert ABOVE.verdict(numbers).split(" (")[0] == above
    assert BELOW.verdict(numbers).split(" (")[0] == below


def test_what_is_undecided_says_what_could_have_been_detected():
    half_width = 1.959964 * 0.03
    verdict = ABOVE.verdict({"m": (0.1, 0.1 - half_width, 0.1 + half_width)})
    assert verdict == "undecided (interval straddles the threshold; smallest detectable effect 0.084)"
    assert smallest_detectable(0.03) == pytest.approx(0.084, abs=1e-4)


def test_the_matrix_shows_every_claim_measured_or_not():
    numbers = {
        "spim_minus_best_crops_miou": (0.02, 0.005, 0.035),
        "spim_layer_difference": (3e-13, 3e-13, 3e-13),
        "memory_ratio": (1.3, 1.2, 1.4),
        "spim_minus_none_miou": (0.01, -0.02, 0.04),
    }
    matrix = claim_matrix(numbers)
    assert list(matrix.columns) == [
        "claim", "source", "experiment", "measure", "threshold", "value", "low", "high", "verdict"
    ]  # fmt: skip
    assert matrix["claim"].tolist() == [claim.claim for claim in CLAIMS]
    verdicts = matrix.set_index("measure")["verdict"]
    assert verdicts["spim_minus_best_crops_miou"] == verdicts["spim_layer_difference"] == "supported"
    assert verdicts["memory_ratio"] == "not supported"
    assert verdicts["spim_minus_none_miou"].startswith("undecided")
    assert verdicts["parallel_efficiency"] == NOT_MEASURED
    open_claims = matrix[matrix["measure"].isna()]
    assert set(open_claims["verdict"]) == {NOT_TESTABLE}
    assert set(open_claims["threshold"]) == {""}
    row = matrix.set_index("measure").loc["memory_ratio"]
    assert (row["threshold"], row["value"], row["low"], row["high"]) == ("< 1.15", 1.3, 1.2, 1.4)
    assert matrix["value"].notna().sum() == len(numbers)


def test_claims_are_whole_and_no_measure_decides_two():
    measures = [claim.measure for claim in CLAIMS if claim.measure]
    assert len(set(measures)) == len(measures)
    assert all(claim.claim.endswith(".") and claim.source and claim.experiment for claim in CLAIMS)


def test_wrong_numbers_are_refused():
    with pytest.raises(UserError, match="no claim is decided by spim_gain; the measures are spim_minus_best_crops"):
        claim_matrix({"spim_gain": (0, 0, 0)})
    for wrong in ((0.1, 0.2, 0.0), (math.nan, 0.0, 0.2), (0.1, math.nan, math.nan)):
        with pytest.raises(UserError, match=r"m is .* give finite numbers"):
            ABOVE.verdict({"m": wrong})
