"""Descent of the linear probe's large problems: L-BFGS that multiplies the features twice a step.

Linear scores along a direction are a line: ``scores(w + t d) = scores(w) + t scores(d)``. A line
search on them multiplies no features. It uses slopes alone: near the minimum the differences of
two losses are rounding errors in float32, and a search by losses repeats its steps there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Products", "descend"]

Array = NDArray[np.floating[Any]]

MEMORY = 10
"""Steps that L-BFGS remembers."""
MAX_STEPS = 1000
FLAT = 0.5
"""A step is long enough when the slope has fallen to this share of the first one."""
OVERSHOT = 0.1
"""It is too long when the slope behind the minimum is larger than this share."""
MAX_TRIALS = 12


class Products(Protocol):
    """The products of a problem with its features, in scaled parameters (r + 1, k)."""

    def scores(self, parameters: Array) -> Array:
        """Linear scores (n, k) of parameters or of a direction."""
        ...

    def gradient(self, parameters: Array, scores: Array) -> Array:
        """Gradient of the objective where the scores are these."""
        ...

    def slope(self, scores: Array, direction_scores: Array) -> float:
        """Derivative of the loss, without its penalty, along a direction."""
        ...

    def penalty_slope(self, parameters: Array, direction: Array) -> float:
        """Derivative of the penalty along a direction."""
        ...


def descend(products: Products, start: Array, tolerance: float) -> tuple[Array, int, bool]:
    """Minimise a convex objective.

    Parameters
    ----------
    products : Products
    start : array, shape (r + 1, k)
    tolerance : float
        Largest value of the gradient at a minimum.

    Returns
    -------
    parameters : array, shape (r + 1, k)
    steps : int
    is_converged : bool
        Whether the gradient, computed anew from the parameters, is within the tolerance.

    Reference
    ---------
    Nocedal and Wright, Numerical Optimization, 2nd edition, algorithms 7.4 and 7.5.
    """
    parameters, scores = start.copy(), products.scores(start)
    gradient, is_fresh = products.gradient(parameters, scores), True
    steps: list[tuple[Array, Array, float]] = []
    for number in range(MAX_STEPS):
        if np.abs(gradient).max() <= tolerance:
            if is_fresh:
                return parameters, number, True
            # Sums of steps have rounding errors: check the minimum by scores of its own.
            scores = products.scores(parameters)
            gradient, is_fresh = products.gradient(parameters, scores), True
            if np.abs(gradient).max() <= tolerance:
                return parameters, number, True
        direction = -_times_inverse_hessian(gradient, steps)
        slope = float(np.vdot(gradient, direction))
        if slope >= 0:
            steps, direction = [], -gradient
            slope = float(np.vdot(gradient, direction))
        direction_scores = products.scores(direction)
        length = _line_search(
            _slope_along(products, (parameters, scores), (direction, direction_scores)), slope
        )
        if not length:
            break
        parameters = parameters + length * direction
        scores += np.asarray(length, dtype=scores.dtype) * direction_scores
        new_gradient, is_fresh = products.gradient(parameters, scores), False
        change, step = new_gradient - gradient, length * direction
        if (curvature := float(np.vdot(change, step))) > 0:
            steps = [*steps[-MEMORY + 1 :], (step, change, curvature)]
        gradient = new_gradient
    return parameters, number + 1, bool(np.abs(gradient).max() <= tolerance)


def _times_inverse_hessian(gradient: Array, steps: list[tuple[Array, Array, float]]) -> Array:
    """Multiply the gradient by the inverse Hessian that the last steps suggest."""
    result, shares = gradient.copy(), []
    for step, change, curvature in reversed(steps):
        share = float(np.vdot(step, result)) / curvature
        shares.append(share)
        result -= share * change
    if steps:
        _, change, curvature = steps[-1]
        result *= curvature / float(np.vdot(change, change))
    for (step, change, curvature), share in zip(steps, reversed(shares), strict=True):
        result += (share - float(np.vdot(change, result)) / curvature) * step
    return result


def _slope_along(
    products: Products, start: tuple[Array, Array], direction: tuple[Array, Array]
) -> Callable[[float], float]:
    """Make the derivative of the objective as a function of the length of a step."""
    (parameters, scores), (change, change_of_scores) = start, direction
    at_start = products.penalty_slope(parameters, change)
    growth = products.penalty_slope(change, change)

    def slope_at(length: float) -> float:
        moved = scores + np.asarray(length, dtype=scores.dtype) * change_of_scores
        return products.slope(moved, change_of_scores) + at_start + length * growth

    return slope_at


def _line_search(slope_at: Callable[[float], float], first_slope: float) -> float:
    """Find the length of a step where a convex function is nearly flat; 0 if there is none."""
    low, low_slope, high = 0.0, first_slope, 0.0
    length, high_slope = 1.0, 0.0
    for _ in range(MAX_TRIALS):
        slope = slope_at(length)
        if -FLAT * abs(first_slope) <= slope <= OVERSHOT * abs(first_slope):
            return length
        if slope < 0:
            low, low_slope = length, slope
        else:
            high, high_slope = length, slope
        if not high:
            length *= 4.0
            continue
        share = low_slope / (low_slope - high_slope)  # of a line through both slopes
        length = low + min(max(share, 0.1), 0.9) * (high - low)
    return low
