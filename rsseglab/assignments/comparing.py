"""How one result differs from another, in words."""

from typing import Any

import numpy as np

RELATIVE, ABSOLUTE = 1e-4, 1e-5  # float32 sums in another order stay within these


def difference(got: Any, right: Any) -> str | None:
    """What is wrong with a result.

    Args:
        got: a number, an array, a tensor, a list or tuple of these, or None; or what a check counted, by name.
        right: what it should be. Floats may have any precision and integers any width.

    Returns:
        One sentence without its full stop, or None where both are the same up to rounding.
    """
    if right is None or got is None:
        return None if got is right else f"the result is {_kind(got)}, and should be {_kind(right)}"
    if isinstance(right, dict):
        wrong = [f"{name}: {got[name]}, and should be {value}" for name, value in right.items() if got[name] != value]
        return "; ".join(wrong) or None
    if isinstance(right, list | tuple):
        return _of_sequences(got, right)
    if _kind(got) != _kind(right):
        return f"the result is {_kind(got)}, and should be {_kind(right)}"
    return _of_arrays(_array(got), _array(right))


def _of_sequences(got: Any, right: list[Any] | tuple[Any, ...]) -> str | None:
    if not isinstance(got, list | tuple):
        return f"the result is {_kind(got)}, and should be {_kind(right)}"
    if _are_numbers(got) and _are_numbers(right):
        return None if list(got) == list(right) else f"the result is {_short(got)}, and should be {_short(right)}"
    if len(got) != len(right):
        return f"the result has {len(got)} entries, and should have {len(right)}"
    for number, (one, other) in enumerate(zip(got, right, strict=True)):
        if wrong := difference(one, other):
            return f"entry {number}: {wrong}"
    return None


def _of_arrays(got: np.ndarray, right: np.ndarray) -> str | None:
    if got.shape != right.shape:
        return f"the result has shape {got.shape}, and should have {right.shape}"
    if (got.dtype.kind in "biu") != (right.dtype.kind in "biu"):
        wanted = "integers" if right.dtype.kind in "biu" else "floating point"
        return f"the result is of dtype {got.dtype}, and should be {wanted}"
    same = np.isclose(got.astype(np.float64), right.astype(np.float64), RELATIVE, ABSOLUTE, equal_nan=True)
    if same.all():
        return None
    if not right.ndim:
        return f"the result is {got.item():.6g}, and should be {right.item():.6g}"
    first = tuple(int(i[0]) for i in np.nonzero(~same))
    at = first[0] if len(first) == 1 else first
    return (
        f"{(~same).sum()} of {same.size} values are wrong, the first at {at}: "
        f"it is {got[first]:.6g}, and should be {right[first]:.6g}"
    )


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "detach")  # torch is not imported for those who do not use it


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu().numpy() if _is_tensor(value) else value)


def _are_numbers(values: Any) -> bool:
    return all(isinstance(value, int | np.integer) for value in values)


def _short(values: Any) -> str:
    shown = [int(value) for value in values]
    return str(shown) if len(shown) <= 12 else f"{str(shown[:12])[:-1]}, ...] ({len(shown)} of them)"


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if _is_tensor(value):
        return "a tensor"
    if isinstance(value, np.ndarray) and value.ndim:
        return "a NumPy array"
    if isinstance(value, list | tuple):
        return "a list or tuple"
    if isinstance(value, int | float | np.number | np.ndarray):
        return "a number"
    return f"of type {type(value).__name__}"
