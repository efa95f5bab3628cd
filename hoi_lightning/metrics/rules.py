"""Which affordance rule a sampled layout follows, by the true layouts about it."""

import torch
from torch import Tensor

NEIGHBOURS = 8


def rule_shares(layouts: Tensor, true: Tensor, rules: list[str], names: list[str]) -> dict[str, float]:
    """Share of each rule among layouts: each gives its nearest true layouts a vote of 1/8.

    A rule is no region: two rules may offer the same layout. A vote is an estimate of the probability that the layout
    came from the rule, so for layouts that follow the true distribution the shares are the true ones on average,
    however much the rules overlap. What is far from all of them counts for the nearest all the same; the energy
    distance sees that it is far.

    Args:
        layouts: (K, 5).
        true: (N, 5); its standard deviations are the units of distance.
        rules: the rule of each true layout.
        names: of all rules.
    """
    scale = true.std(dim=0).clamp(min=1e-6)
    distances = torch.cdist(layouts / scale, true / scale)
    nearest = distances.topk(NEIGHBOURS, largest=False).indices  # (K, 8)
    voted = torch.tensor([names.index(rule) for rule in rules], device=layouts.device)[nearest]
    counts = torch.bincount(voted.flatten(), minlength=len(names)).double()
    return dict(zip(names, (counts / counts.sum()).tolist(), strict=True))
