"""Window arithmetic, held against `rsseglab.inference.windows.window_starts`."""

import numpy as np

from rsseglab.assignments.checking import Assignment, Case, Check, Mistake
from rsseglab.inference.windows import window_starts


def _sizes(rng: np.random.Generator, *, exact: bool) -> list[Case]:
    cases = []
    for share in (1.0, 0.5, 0.7):  # stride, of the window
        window = int(rng.integers(4, 17)) * 4
        stride = int(window * share)
        rest = 0 if exact else int(rng.integers(1, stride))
        cases.append((window + stride * int(rng.integers(2, 7)) + rest, window, stride))
    return cases


def _with_a_rest(rng: np.random.Generator) -> list[Case]:
    return _sizes(rng, exact=False)


def _that_fit(rng: np.random.Generator) -> list[Case]:
    return _sizes(rng, exact=True)


def _short(rng: np.random.Generator) -> list[Case]:
    window = int(rng.integers(16, 65))
    return [(window - int(rng.integers(1, 9)), window, window // 2), (window, window, window // 2),
            (window + int(rng.integers(1, 6)), window, window // 2)]  # fmt: skip


def _whole_windows_only(length: int, window: int, stride: int) -> list[int]:
    return list(range(0, max(length - window, 0) + 1, stride))


def _not_moved_back(length: int, window: int, stride: int) -> list[int]:
    return [0] if length <= window else [i * stride for i in range(-(-(length - window) // stride) + 1)]


def _one_a_stride(length: int, window: int, stride: int) -> list[int]:
    return [max(min(start, length - window), 0) for start in range(0, length, stride)]


def _twice_where_it_fits(length: int, window: int, stride: int) -> list[int]:
    return [*range(0, max(length - window, 0) + 1, stride), max(length - window, 0)]


def _before_the_scene(length: int, window: int, stride: int) -> list[int]:
    return window_starts(length, window, stride) if length >= window else [length - window]


def _nothing(length: int, window: int, stride: int) -> list[int]:
    return window_starts(length, window, stride) if length >= window else []


def _even(length: int, window: int, stride: int) -> list[int]:
    return window_starts(length, window, stride, placement="even")


ASSIGNMENT = Assignment(
    name="windows",
    function="starts",
    component="rsseglab.inference.windows.window_starts",
    reference=lambda length, window, stride: window_starts(length, window, stride),
    checks=(
        Check("the last pixels are covered", 4, _with_a_rest),
        Check("windows that fit exactly", 3, _that_fit),
        Check("scenes as short as a window", 3, _short),
    ),
    mistakes=(
        Mistake(
            "the last pixels of the scene are in no window: you stop at the last start that fits the stride. Add one "
            "more window, moved back so that it ends with the scene",
            _whole_windows_only,
        ),
        Mistake(
            "the last window reaches past the scene; move it back until it ends with the scene (its start is "
            "length - window)",
            _not_moved_back,
        ),
        Mistake(
            "several windows start at the same pixel: you lay a window at each stride of the scene, and move all that "
            "reach past it back. Stop once the scene's end is covered",
            _one_a_stride,
        ),
        Mistake(
            "two windows start at the same pixel: where the stride ends with the scene, no window has to be added",
            _twice_where_it_fits,
        ),
        Mistake("a scene shorter than a window gets a start before its first pixel; it is [0]", _before_the_scene),
        Mistake("a scene shorter than a window gets no window; it is [0], and the window is padded", _nothing),
        Mistake("windows are spread evenly; here they lie every stride px, and only the last one is moved back", _even),
    ),
)
