"""What noise is worth: the privacy that a number of noised answers has spent together.

One answer is a vector of L2 norm at most C with noise of standard deviation z C on each number. What is protected is
*the whole data set of one site*: two neighbours are any two data sets that the site could have, so two answers differ
by at most 2 C. (Most papers let a neighbour be absent instead, a change of C; their noise multiplier for the same
epsilon is half of ours.) One examination is part of the data set, so it is protected at least as well.

For every order alpha > 1 such an answer costs alpha rho of Renyi privacy (Mironov 2017, arXiv 1702.07476, Proposition
7, for the Gaussian; Canonne, Kamath and Steinke 2020, arXiv 2004.00010, Theorem 4, for the discrete one, with the same
figure), and the costs of all answers add up (Mironov 2017, Proposition 1), so rho is all that has to be kept:

    rho = (2 C)^2 / (2 (z C)^2) = 2 / z^2
    epsilon = min over alpha of  alpha rho + ln(1 - 1/alpha) - (ln delta + ln alpha) / (alpha - 1)

The second line is Proposition 12 of Canonne et al. 2020, Theorem 21 of Balle et al. 2020 (arXiv 1905.09982).
"""

import math

UNIT = "a site's whole data set against any other"


def rho(noise_multiplier: float) -> float:
    """What one answer costs, for noise of ``noise_multiplier`` > 0 times the largest norm of an answer."""
    return 2.0 / noise_multiplier**2


def epsilon(spent: float, delta: float) -> float:
    """The epsilon at ``delta`` of answers that cost ``spent`` in all (the sum of their ``rho``). 0 for none,
    infinite where one of them had no noise."""
    if spent <= 0.0 or math.isinf(spent):
        return spent

    def at(log_order: float) -> float:
        less_one = math.exp(log_order)  # alpha - 1
        order = 1.0 + less_one
        return order * spent + math.log(less_one / order) - (math.log(delta) + math.log(order)) / less_one

    # Any order gives a bound that holds; the search only looks for a small one.
    best = min((step / 10.0 for step in range(-120, 400)), key=at)
    low, high = best - 0.1, best + 0.1
    for _ in range(60):
        left, right = low + (high - low) / 3.0, high - (high - low) / 3.0
        low, high = (low, right) if at(left) < at(right) else (left, high)
    return max(0.0, min(at(best), at((low + high) / 2.0)))


def answers_within(most: float, delta: float, each: float) -> int:
    """How many answers that cost ``each`` the budget ``most`` (an epsilon) is enough for, at most a million."""
    low, high = 0, 1_000_000
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if epsilon(middle * each, delta) <= most else (low, middle - 1)
    return low
