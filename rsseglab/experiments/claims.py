"""The claim matrix of REST: what the paper claims, what would speak for it here, and what our records say.

A claim is treated as a hypothesis. Its measure and its threshold stand in this file before the experiments are run, and
the verdict follows from the 95 % interval of the measure by one rule:

- *supported*: the whole interval lies beyond the threshold, on the claimed side;
- *not supported*: the whole interval lies on the other side, the threshold included;
- *undecided*: the interval straddles the threshold; the smallest effect that could have been detected stands beside it;
- *not testable here*: with the reason.

"Not supported" speaks of our scenes, networks and schedules, which are smaller than the authors'.

Where a claim comes from: the *abstract* (doi 10.1109/TPAMI.2025.3609767); the *project page* and the authors' plots on
it; the public *code* at commit be03fe8; a third party's *review*, said to quote the paper's Table VI. *Ours* is a
question that was not found answered in the public code or project page. The full text was not read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import pandas as pd
from scipy.special import ndtri

from rsseglab.errors import UserError
from rsseglab.evaluation.bootstrap import LEVEL, smallest_detectable

Number = tuple[float, float, float]  # value, and the ends of its 95 % interval; three times the same where exact

SUPPORTED, NOT_SUPPORTED, NOT_TESTABLE = "supported", "not supported", "not testable here"
NOT_MEASURED = "not measured yet"
ONE_SEED = "undecided (one seed: what another training would give is not in the interval)"


@dataclass(frozen=True)
class Claim:
    """A hypothesis, and what decides it.

    Attributes:
        claim: in our words.
        source: where it was found, see the module.
        experiment: what is done here, or for a claim that can't be tested the reason.
        measure: name of the number that decides; None for a claim that can't be tested here.
        side: on which side of the threshold the measure supports the claim.
        threshold: in the measure's unit (mean IoU as a share: 0.01 is one point).
    """

    claim: str
    source: str
    experiment: str
    measure: str | None = None
    side: Literal["above", "below"] = "above"
    threshold: float = 0.0

    def verdict(self, numbers: Mapping[str, Number]) -> str:
        """What the numbers of run records say, by the rule of the module.

        Raises:
            UserError: the measure is no finite number, or its interval is upside down.
        """
        if self.measure is None:
            return NOT_TESTABLE
        if self.measure not in numbers:
            return NOT_MEASURED
        value, low, high = numbers[self.measure]
        if not (isfinite(value) and isfinite(low) and isfinite(high) and low <= high):
            raise UserError(
                f"{self.measure} is {value} in [{low}, {high}]; give finite numbers as value, lower and upper end."
            )
        if low > self.threshold if self.side == "above" else high < self.threshold:
            return SUPPORTED
        if high <= self.threshold if self.side == "above" else low >= self.threshold:
            return NOT_SUPPORTED
        standard_error = (high - low) / 2 / float(ndtri(1 - LEVEL / 2))
        return (
            "undecided (interval straddles the threshold; "
            f"smallest detectable effect {smallest_detectable(standard_error):.2g})"
        )


CLAIMS: tuple[Claim, ...] = (
    # --- Accuracy: differences of mean IoU over the test scenes, paired block bootstrap over places and seeds ---
    Claim(
        "REST labels better than the best cropping.",
        'abstract: "consistently outperforms existing cropping-based [...] methods"',
        "spim, whole scenes, against cropping with the size and overlap that do best on validation",
        "spim_minus_best_crops_miou",
    ),
    Claim(
        "REST labels better than global-local fusion.",
        'abstract: "consistently outperforms existing [...] fusion-based methods"',
        "spim, whole scenes, against a two-stream global-local baseline",
        "spim_minus_fusion_miou",
    ),
    Claim(
        "A trained REST labels better on whole scenes than in windows of its training size.",
        "project page: plots of train against test size (highest on whole scenes for FBP and WHU-OHS)",
        "the same spim network on whole scenes and in windows",
        "spim_whole_minus_windows_miou",
    ),
    Claim(
        "The gain comes from the interaction, not from the further training steps.",
        "ours",
        "spim against a control with the same two stages and steps without SPIM",
        "spim_minus_control_miou",
    ),
    Claim(
        "Letting the tiles interact is worth something.",
        "review: 71.50 with, 70.99 without any exchange on FBP",
        "spim against none, whole scenes",
        "spim_minus_none_miou",
    ),
    Claim(
        "Exact tiles and SPIM together label better than SPIM between tiles as published.",
        "ours",
        "exact+spim against spim, whole scenes",
        "exact_spim_minus_spim_miou",
    ),
    Claim(
        "Training on larger windows labels better.",
        'abstract: "holistic" learning; the authors\' plots of train against test size point the other way',
        "spim trained on the largest windows against spim trained on the smallest, whole scenes, same pixels seen",
        "spim_train_large_minus_small_miou",
    ),
    # --- Context: look-alike pixels of twin scenes, whose crop stands on a far key; guessing has 0.5 ---
    Claim(
        "Crops cannot see what lies farther away than their side.",
        'abstract: cropping is "suboptimal"; provable on twin scenes',
        "share of look-alike pixels right, cropping with windows below context_px",
        "twins_crops_pair_accuracy",
        "below",
        0.51,
    ),
    Claim(
        "SPIM is aware of the whole scene.",
        'abstract: "achieve global context awareness"',
        "share of look-alike pixels right, spim, keys beyond tile and receptive field",
        "twins_spim_pair_accuracy",
        "above",
        0.9,
    ),
    Claim(
        "Exact tiles alone see no farther than the receptive field.",
        "ours; provable on twin scenes",
        "share of look-alike pixels right, exact without any global operation, keys beyond the receptive field",
        "twins_exact_pair_accuracy",
        "below",
        0.51,
    ),
    # --- Equality: relative differences in float64 unless said otherwise ---
    Claim(
        "The SPIM layer, cut over P workers, is exactly an attention over all tokens.",
        "code: all-to-all between heads and tokens, its adjoint backward",
        "largest relative difference to plain multi-head attention, output and gradients, P = 1, 2, 3, 4, 8",
        "spim_layer_difference",
        "below",
        1e-10,
    ),
    Claim(
        "With exact tiles and a fixed number of heads the answer does not depend on the number of workers.",
        "ours",
        "largest relative difference of exact+spim between one worker and many",
        "exact_spim_difference",
        "below",
        1e-10,
    ),
    Claim(
        "With as many heads as workers, the answer of a trained network depends on their number.",
        "code: heads = world size; its test script names one checkpoint for 1, 2, 4 and 8 GPUs",
        'share of pixels whose label changes when a network trained at one P is tested at another, heads="world"',
        "heads_world_changed_share",
        "above",
        0.01,
    ),
    # --- Cost ---
    Claim(
        "The memory a worker needs to train on a scene falls as 1/P.",
        "abstract: overcomes the limits of GPU memory by spatial parallelism",
        "P x memory at P / memory at 1, peak less what stands after the model is built, worst of P = 2 and 4",
        "memory_ratio",
        "below",
        1.15,
    ),
    Claim(
        "Throughput grows nearly linearly with the workers.",
        'abstract: "near-linear throughput scalability"; an earlier README spoke of sublinear',
        "parallel efficiency of a training step of spim, two workers on two cores against one on one",
        "parallel_efficiency",
        "above",
        0.8,
    ),
    Claim(
        "Attention at stride 4 takes a quarter of the time or more.",
        "review: 31 % of the time is saved without the exchange at stride 4",
        "share of a step's time saved by SPIM at strides 8 to 32 instead of 4 to 32",
        "stride4_time_share",
        "above",
        0.25,
    ),
    # --- Not testable here ---
    Claim(
        "Attention at stride 4 is worth less than half a point of mean IoU.",
        "review: 0.07 points on FBP for the exchange at stride 4",
        "at stride 4 a test scene of Dubai, even averaged over 2 x 2 px, has 0.4 million tokens that attend to each "
        "other, which needs a GPU",
    ),
    Claim(
        "REST gains 3.3 points on Five-Billion-Pixels (SkySense Swin-L, UPerNet: 69.68 to 72.95).",
        "project page",
        "needs its 150 scenes of 6908 x 7300 px, which are not at hand, and several GPUs of 40 GB",
    ),
    Claim(
        "Whole scenes of 12800 x 12800 px are labelled on eight 40 GB GPUs.",
        "project page, and the README of the code",
        "needs eight GPUs and GLH-Water; what it would take is predicted from measured rates, and marked so",
    ),
    Claim(
        "Throughput is near-linear over many GPUs.",
        "abstract",
        "needs several GPUs on a fast link; scaling beyond two workers is predicted, unvalidated",
    ),
    Claim(
        "REST tests GLH-Water in 41.7 s at an IoU of 89.29 %.",
        "project page",
        "needs the data and the authors' hardware; what the seconds cover was not found",
    ),
    Claim(
        "REST gains with foundation models (SkySense, Scale-MAE, DOFA) as encoders.",
        "abstract and project page",
        "the encoders plug in here, but fine-tuning them on whole scenes needs several large GPUs",
    ),
    Claim(
        "REST gains on hyperspectral, single-class and drone scenes alike (WHU-OHS, GLH-Water, UAVid).",
        'abstract: "consistently [...] across a variety of scenarios"',
        "the data sets are not at hand; the worked cases here have too few scenes for an interval",
    ),
)


def claim_matrix(numbers: Mapping[str, Number], claims: Sequence[Claim] = CLAIMS) -> pd.DataFrame:
    """Fill the matrix from the numbers of run records.

    Args:
        numbers: value and ends of the 95 % interval by the name of the measure.
        claims: the rows.

    Returns:
        One row a claim: claim, source, experiment, measure, threshold (as text), value, low, high and verdict; NaN
        where nothing was measured.

    Raises:
        UserError: a number is no claim's measure, not finite, or its interval is upside down.
    """
    measures = [claim.measure for claim in claims if claim.measure]
    if unknown := sorted(set(numbers) - set(measures)):
        raise UserError(f"no claim is decided by {', '.join(unknown)}; the measures are {', '.join(measures)}.")
    rows = []
    for claim in claims:
        value, low, high = numbers.get(claim.measure or "", (float("nan"),) * 3)
        threshold = f"{'>' if claim.side == 'above' else '<'} {claim.threshold:g}" if claim.measure else ""
        rows.append(
            {
                "claim": claim.claim, "source": claim.source, "experiment": claim.experiment,
                "measure": claim.measure, "threshold": threshold,
                "value": value, "low": low, "high": high, "verdict": claim.verdict(numbers),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)
