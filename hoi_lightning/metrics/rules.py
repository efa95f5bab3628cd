"""Which affordance rule a sampled layout follows, by the true layouts about it."""

import torch
from torch import Tensor

NEIGHBOURS = 8


def rule_shares(layouts: Tensor, true: Tensor, rules: list[str], names: list[str]) -> dict[str, float]:
    """Share of each rule among layouts: each gives its nearest true layouts a vote of 1/8.

    A rule is no region: two rules may offer the same layout. A vote is an estimate of the probability that the layout
    came from the rule. By itself it favours the denser of two rules that overlap, whose layouts are more often among
    the nearest. So what the votes of the true layouts, each without its own, differ from their shares is taken off, and
    layouts that follow the true distribution get the true shares on average; a share near 0 may come out below it. A
    wrong share of a rule that overlaps another shows as less than it is. What is far from all of them counts for the
    nearest all the same; the energy distance sees that it is far.

    Args:
        layouts: (K, 5).
        true: (N, 5), N > 8; its standard deviations are the units of distance.
        rules: the rule of each true layout.
        names: of all rules.
    """
    scale = true.std(dim=0).clamp(min=1e-6)
    belongs = torch.tensor([[rule == name for name in names] for rule in rules], device=true.device).double()  # (N, R)
    among_true = torch.cdist(true / scale, true / scale).fill_diagonal_(torch.inf)
    excess = _votes(among_true, belongs) - belongs.mean(dim=0)
    shares = _votes(torch.cdist(layouts / scale, true / scale), belongs) - excess
    return dict(zip(names, shares.tolist(), strict=True))


def _votes(distances: Tensor, belongs: Tensor) -> Tensor:
    """Mean votes (R,) by distances (K, N)."""
    nearest = distances.topk(NEIGHBOURS, largest=False).indices  # (K, 8)
    return belongs[nearest].mean(dim=(0, 1))
