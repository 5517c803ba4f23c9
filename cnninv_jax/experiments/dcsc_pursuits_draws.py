"""One draw of signs for every pursuit at once: what thresholds, projections and solvers make of the same signal."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from cnninv_jax import dcsc
from cnninv_jax._typing import Array, Code, Float, Int, PRNGKeyArray, Scalar, Signal
from cnninv_jax.dcsc.forward import Forward, compare, default_thresholds, forward, supports
from cnninv_jax.dcsc.layered import Layered, layered_basis_pursuit, layered_iht
from cnninv_jax.dcsc.noise import noise
from cnninv_jax.recovery import RESULTS, LassoStatus
from cnninv_jax.sparsity.norms import stripe_norm

#: The pursuits, as prefixes of outputs, in words.
METHODS = {
    "hard": "hard threshold",
    "soft": "soft threshold",
    "stripes": "stripe projection (greedy)",
    "basis_pursuit": "layered basis pursuit",
    "iht": "layered IHT",
}
#: IHT stops at this many times the noise's relative norm, or at `IHT_FLOOR` where there is less noise.
ABOVE_NOISE, IHT_FLOOR = 1.05, 1e-5
#: What each is told of the signal that it looks for.
TOLD = {
    "hard": "|X_min| of every layer: beta = |X_min| / 2",
    "soft": "|X_min| of every layer: beta = |X_min| / 2^l, half of what the layers below leave of it",
    "stripes": "S of every layer",
    "basis_pursuit": "|X_min| of every layer: what is found below |X_min| / 2 is set to zero",
    "iht": "the number of non-zeros of every layer, and at which residual to stop",
}


class Problem(NamedTuple):
    """A signal to be explained, and what made it.

    Attributes:
        model: the layers with their signs.
        x: X^(0) + V^(0).
        truth: X^(0), ..., X^(L).
    """

    model: dcsc.Layers
    x: Signal
    truth: tuple[Signal, ...]

    @property
    def thresholds(self) -> Float[Array, " L"]:
        """|X_min^(l)| / 2."""
        return default_thresholds(self.truth)

    @property
    def sparsity(self) -> Int[Array, " L"]:
        """S_l = |X^(l)|_{0,inf}^Q."""
        return jnp.stack(
            [
                stripe_norm(active, layer.op.length, stride=layer.op.stride, padding=layer.op.padding)
                for layer, active in zip(self.model, supports(self.truth[1:]), strict=True)
            ]
        )

    @property
    def counts(self) -> Int[Array, " L"]:
        """Non-zeros of X^(l)."""
        return jnp.stack([jnp.sum(active, dtype=np.int32) for active in supports(self.truth[1:])])

    @property
    def iht_tol(self) -> Scalar:
        """Relative residual that the truth itself reaches, and a little more: less would be a fit to the noise."""
        share = jnp.linalg.norm((self.x - self.truth[0]).ravel()) / jnp.linalg.norm(self.x.ravel())
        return jnp.maximum(ABOVE_NOISE * share, IHT_FLOOR).astype(self.x.dtype)


@dataclasses.dataclass(frozen=True)
class Solvers:
    """How the pursuits that solve something do so; all static.

    Attributes:
        lam: weight of the l1 norm, as a fraction of every layer's lam_max.
        tol: relative duality gap.
        max_steps: most steps of a layer's l1 minimisation.
        iht_steps: most steps of a layer's IHT.
        iht_tol: relative residual at which a layer's IHT stops; a little above the noise's for None.
    """

    lam: float
    tol: float
    max_steps: int
    iht_steps: int
    iht_tol: float | None = None


Pursuit: TypeAlias = Callable[[Problem, Solvers], Forward | Layered]


def _hard(problem: Problem, solvers: Solvers) -> Forward:
    return forward(problem.model, problem.x, "hard", thresholds=problem.thresholds)


def _soft(problem: Problem, solvers: Solvers) -> Forward:
    # A soft threshold at half of |X_min| halves the smallest entries, and with them the next layer's responses.
    halves = 2.0 ** -jnp.arange(len(problem.model), dtype=problem.x.dtype)
    return forward(problem.model, problem.x, "soft", thresholds=problem.thresholds * halves)


def _stripes(problem: Problem, solvers: Solvers) -> Forward:
    return forward(problem.model, problem.x, "stripes", sparsity=problem.sparsity)


def _basis_pursuit(problem: Problem, solvers: Solvers) -> Layered:
    lams = np.full(len(problem.model), solvers.lam)
    return layered_basis_pursuit(
        problem.model, problem.x, lams, thresholds=problem.thresholds, tol=solvers.tol, max_steps=solvers.max_steps
    )


def _iht(problem: Problem, solvers: Solvers) -> Layered:
    tol: Any = problem.iht_tol if solvers.iht_tol is None else solvers.iht_tol
    return layered_iht(problem.model, problem.x, problem.counts, num_steps=solvers.iht_steps, tol=tol)


PURSUITS: dict[str, Pursuit] = {
    "hard": _hard,
    "soft": _soft,
    "stripes": _stripes,
    "basis_pursuit": _basis_pursuit,
    "iht": _iht,
}
#: Of the pursuits that solve something: how a layer ends well.
ENDS_WELL = {"basis_pursuit": LassoStatus.CONVERGED, "iht": RESULTS.CONVERGED}


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["model", "codes", "noise"], meta_fields=["solvers", "methods"]
)
@dataclasses.dataclass(frozen=True)
class PursuitDraw:
    """Draw a code, all signs and the noise; pursue the path by every method.

    Attributes:
        model: the layers.
        codes: X^(L) to choose from with equal probability, [C, n_L, *n].
        noise: |V^(0)|_{2,inf} over |X_min^(1)|.
        solvers: see `Solvers` (static).
        methods: some of `METHODS` (static).
    """

    model: dcsc.Layers
    codes: Float[Array, " C n_L *n"]
    noise: Scalar
    solvers: Solvers
    methods: tuple[str, ...] = tuple(METHODS)

    def problem(self, key: PRNGKeyArray) -> Problem:
        """Return the signal of a draw."""
        code_key, sign_key, noise_key = jax.random.split(key, 3)
        code: Code = self.codes[jax.random.randint(code_key, (), 0, self.codes.shape[0], np.int32)]
        model = dcsc.draw_signs(sign_key, self.model)
        truth = dcsc.reverse_pass(model, code)
        op = model[0].op
        level = self.noise * 2 * default_thresholds(truth)[0]
        added = noise(
            noise_key, op.input_shape, op.length, patch_norm=level, stride=op.stride, padding=op.padding, dtype=op.dtype
        )
        return Problem(model, truth[0] + added, truth)

    def __call__(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Return for every method, as ``hard_path`` and so on.

        ``path``: the supports are those of the truth in every layer. ``complete``: no entry of any support is missing.
        ``hits``, ``misses``, ``false_alarms``: [L]. ``unfinished``: in some layer the solver reached no solution.
        ``steps``: of the solver, [L].
        """
        problem = self.problem(key)
        outputs: dict[str, Array] = {}
        for name in self.methods:
            found = PURSUITS[name](problem, self.solvers)
            if isinstance(found, Layered):
                outputs[f"{name}_unfinished"] = jnp.any(found.status != ENDS_WELL[name])
                outputs[f"{name}_steps"] = found.steps.astype(problem.x.dtype)
            codes = (found.forward if isinstance(found, Layered) else found).codes
            compared = compare(problem.model, codes, problem.truth, problem.x)
            assert compared.path_recovered is not None
            assert compared.misses is not None
            outputs[f"{name}_path"] = compared.path_recovered
            outputs[f"{name}_complete"] = jnp.all(compared.misses == 0)
            for kind in ("hits", "misses", "false_alarms"):
                outputs[f"{name}_{kind}"] = getattr(compared, kind).astype(problem.x.dtype)
        return outputs
