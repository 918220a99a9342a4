"""Several classifiers that are attacked as one: the source of transfer attacks.

The ensemble's answer is the mean of its members' logits (Dong et al., Boosting Adversarial Attacks with Momentum, 2018,
https://arxiv.org/abs/1710.06081, section 3.2: "ensemble in logits", equal weights). The engine reads ``members``, so
that an attack may also ask one member alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from windtunnel.backend import torch
from windtunnel.models.base import assert_frozen

Tensor = torch.Tensor


class MembersDisagree(ValueError):
    """The members of an ensemble answer with different numbers of classes."""


class Ensemble(nn.Module):
    """K frozen classifiers, images [N, C, H, W] in [0, 1] to the mean of their logits [N, classes].

    Each member normalises for itself. An ensemble of one answers bit for bit as its member does. It has no
    ``features`` and no head: scores that need them are computed on one model. ``names`` are for messages only.
    """

    is_ensemble = True
    """What the engine looks for: a user's model may have members of its own and still be one model."""

    def __init__(self, members: Sequence[nn.Module], *, names: Sequence[str] | None = None) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        for member in members:
            assert_frozen(member)
        self.members = nn.ModuleList(members)
        self.names = tuple(names if names is not None else (f"member {k}" for k in range(len(members))))
        if len(self.names) != len(members):
            raise ValueError(f"{len(members)} members, {len(self.names)} names")
        self.has_nan = any(bool(getattr(member, "has_nan", False)) for member in members)
        self.eval()  # the members are in eval mode already: this concerns the two containers

    def forward(self, x: Tensor) -> Tensor:
        """[N, classes]: the mean of the members' logits."""
        answers = [member(x) for member in self.members]
        counts = [answer.shape[1] for answer in answers]
        if len(set(counts)) > 1:
            said = ", ".join(f"{name}: {count}" for name, count in zip(self.names, counts, strict=True))
            raise MembersDisagree(f"the members of an ensemble must have the same number of classes, not {said}")
        return answers[0] if len(answers) == 1 else torch.stack(answers).mean(0)


def ensemble_of(
    members: Sequence[nn.Module] | Mapping[str, nn.Module], *, image_shape: tuple[int, int, int] | None = None
) -> Ensemble:
    """An ensemble of loaded models, by name or in a row.

    With ``image_shape`` it is asked about one grey image at once, so that members that do not fit together are refused
    here; otherwise its first question refuses them.
    """
    if isinstance(members, Mapping):
        ensemble = Ensemble(list(members.values()), names=list(members))
    else:
        ensemble = Ensemble(members)
    if image_shape is not None:
        device = next((tensor.device for tensor in (*ensemble.parameters(), *ensemble.buffers())), torch.device("cpu"))
        with torch.no_grad():
            ensemble(torch.full((1, *image_shape), 0.5, device=device))
    return ensemble
