"""The layered hard-thresholding pass of D-CSC in torch, batched over draws of signs: a peer of `benchmarks.dcsc`.

``full`` is what a user would write: signs for every entry, transposed convolutions down to the signal, convolutions and
thresholds up again, supports compared. ``Support`` is torch's best form, which nobody would write first: supports and
responses are found once, a draw is a sign for every place of the supports and one matrix product per layer, over those
responses alone that are not zero whatever the signs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peers.dcsc_numpy import LEFT, Problem, analysis, synthesis

if TYPE_CHECKING:
    import torch
else:
    try:
        import torch
    except ImportError:
        torch = None

#: Why this peer cannot run, or None.
UNAVAILABLE = "torch is not installed" if torch is None else None


def draw_signs(generator: torch.Generator, shape: Sequence[int]) -> torch.Tensor:
    """Draw signs, float32; +-1 by the shortest way that torch has."""
    return torch.empty(*shape, device=generator.device).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


class Full:
    """The pass over all entries."""

    def __init__(self, problem: Problem, device: str) -> None:
        self.banks = [torch.from_numpy(bank).to(device) for bank in problem.banks]
        self.code = torch.from_numpy(problem.code).to(device)
        self.thresholds, self.shapes = problem.thresholds, problem.shapes

    def draw(self, generator: torch.Generator, batch: int) -> list[torch.Tensor]:
        """Draw D^(1), ..., D^(L), [B, n_l, n] each."""
        return [draw_signs(generator, (batch, *shape)) for shape in self.shapes]

    def __call__(self, signs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return whether layer l is the first that loses its support, [B, L]."""
        codes = [self.code.expand_as(signs[-1])]
        for bank, sign in zip(self.banks[::-1], signs[::-1], strict=True):
            codes.append(torch.nn.functional.conv_transpose1d(sign * codes[-1], bank))
        codes.reverse()
        estimate, found = codes[0], []
        lost = torch.zeros(len(codes[0]), dtype=torch.bool, device=self.code.device)
        for bank, sign, code, beta in zip(self.banks, signs, codes[1:], self.thresholds, strict=True):
            responses = torch.nn.functional.conv1d(estimate, bank).mul_(sign)
            kept = responses.abs() > beta
            estimate = responses.mul_(kept)
            wrong = (kept != (code.abs() > LEFT)).flatten(1).any(1)
            found.append(wrong & ~lost)
            lost = lost | wrong
        return torch.stack(found, 1)


def tables(problem: Problem) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Return places of every layer's support (flat), responses [rows, c_(l-1)] with the places first, and spreads."""
    masks = [problem.code != 0]
    for bank in problem.banks[:0:-1]:
        masks.append(synthesis(np.abs(bank), np.float32(masks[-1])[None], "windows")[0] > LEFT)
    masks.reverse()
    places = [np.flatnonzero(mask) for mask in masks]

    def units(number: int) -> np.ndarray:
        found = np.zeros((len(places[number]), masks[number].size), np.float32)
        found[np.arange(len(found)), places[number]] = 1
        return found.reshape(-1, *masks[number].shape)

    responses, spreads = [], []
    for number, bank in enumerate(problem.banks):
        if number == 0:
            below = synthesis(bank, units(0), "windows")
        else:
            below = units(number - 1)
            spread = synthesis(bank, units(number), "windows")
            spreads.append(spread.reshape(len(spread), -1)[:, places[number - 1]].T)
        table = analysis(bank, below, "windows").reshape(len(below), -1).T
        off = np.setdiff1d(np.flatnonzero(np.abs(table).max(1) > 0), places[number])
        responses.append(table[np.concatenate([places[number], off])])
    return places, responses, spreads


class Support:
    """The pass over the supports: one product per layer."""

    def __init__(self, problem: Problem, device: str, compiled: bool = False) -> None:
        self.places, responses, spreads = tables(problem)
        on = lambda array: torch.from_numpy(np.ascontiguousarray(array.T)).to(device)  # noqa: E731
        self.responses, self.spreads = [*map(on, responses)], [*map(on, spreads)]
        self.thresholds, self.compiled = problem.thresholds, compiled
        self.values = torch.from_numpy(problem.code.ravel()[self.places[-1]]).to(device)
        self.offsets = np.cumsum([0, *(len(where) for where in self.places)])
        self.run: Callable[..., torch.Tensor] = torch.compile(self._failures, dynamic=False) if compiled else (
            self._failures
        )  # fmt: skip

    def draw(self, generator: torch.Generator, batch: int) -> list[torch.Tensor]:
        """Draw all signs on the supports at once, [B, c_l] each."""
        whole = draw_signs(generator, (batch, int(self.offsets[-1])))
        return [whole[:, start:stop] for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def of(self, signs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the signs on the supports out of those of all entries."""
        return [sign.flatten(1)[:, where].contiguous() for sign, where in zip(signs, self.places, strict=True)]

    def __call__(self, signs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return whether layer l is the first that loses its support, [B, L]."""
        return self.run(signs)

    def _failures(self, signs: Sequence[torch.Tensor]) -> torch.Tensor:
        codes = [self.values.expand_as(signs[-1])]
        for spread, sign in zip(self.spreads[::-1], signs[:0:-1], strict=True):
            codes.append((sign * codes[-1]) @ spread)
        codes.reverse()
        carried, found = signs[0] * codes[0], []
        lost = torch.zeros(len(carried), dtype=torch.bool, device=carried.device)
        for table, sign, code, beta in zip(self.responses, signs, codes, self.thresholds, strict=True):
            count = code.shape[1]
            responses = carried @ table
            here, active = responses[:, :count], code.abs() > LEFT
            wrong = ((here.abs() > beta) != active).any(1)
            off = responses[:, count:]
            if off.shape[1]:
                # `aminmax` and the maximum norm read the responses once, but take 20 times as long: no vectors.
                if self.compiled:
                    wrong = wrong | (off.abs().amax(1) > beta)
                else:
                    wrong = wrong | (off.amax(1) > beta) | (off.amin(1) < -beta)
            carried = sign * here * active
            found.append(wrong & ~lost)
            lost = lost | wrong
        return torch.stack(found, 1)
