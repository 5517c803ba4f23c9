"""How an iteration of hard thresholding can end, in numbers for programs and in words for people."""

from __future__ import annotations

import enum

#: An iterate whose relative residual exceeds this is given up; z = 0 has 1.
DIVERGENCE = 10.0


class RESULTS(enum.IntEnum):
    """How an iteration ended; each has a message."""

    COMPLETED = 0
    CONVERGED = 1
    CAP = 2
    DIVERGED = 3
    ZERO_SIGNAL = 4
    NOT_FINITE = 5

    @property
    def message(self) -> str:
        """What happened and what to do."""
        return _MESSAGES[self]


_MESSAGES = {
    RESULTS.COMPLETED: "all num_steps iterations were taken; look at residual_norms, or give tol to have it judged",
    RESULTS.CONVERGED: "the relative residual reached tol",
    RESULTS.CAP: (
        "the relative residual is above tol after num_steps iterations: raise num_steps; if residual_norms no longer "
        "fall, x is no sum of k shifted filters as found: raise k, or try step='normalized'"
    ),
    RESULTS.DIVERGED: (
        f"the residual grew beyond {DIVERGENCE:g} times |x| or is not finite; the code is the iterate before that: "
        "take step='safe' or 'normalized', or filters of about unit norm"
    ),
    RESULTS.ZERO_SIGNAL: "x is zero and so is its code",
    RESULTS.NOT_FINITE: "|x|^2 is not finite; the code is NaN: look for NaN or infinity in x, or scale it down",
}
