"""Classification heads: linear, AbeT (learned per-sample temperature) and its control (one learned temperature).

AbeT: Ablated Learned Temperature Energy (LeVine et al., https://arxiv.org/abs/2401.12129). With the penultimate feature
h in R^D and class vectors w_c:

    g_c = <w_c, h> / ((|w_c| + 1e-4) (|h| + 1e-4))        in float64, no bias, kaiming_normal_
    T   = sigmoid(BatchNorm1d(Linear_{D->1}(h))) + 1e-12   in (0, 1)
    z_c = g_c / T                                          trained with plain cross-entropy on z

The control ``cosine_global`` has the same cosine head and one scalar t for all samples, T = sigmoid(t) + 1e-12, so
that the two differ in nothing but whether the temperature depends on the sample. t starts at 0 (T = 1/2), where a
fresh AbeT head starts on average. Deviations from the paper: none known; it leaves the start of the control open, as
it has no control.

``description()`` says in JSON which saved tensors make up the head, and ``windtunnel.models.arrays.fold`` turns them
into the arrays of ``windtunnel.scores.base.Head``; the loader without torch and ``Classifier.head_arrays`` share it,
so they agree bit for bit.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from windtunnel.backend import torch

Tensor = torch.Tensor
NORM_EPSILON = 1e-4
TEMPERATURE_EPSILON = 1e-12


class LinearHead(nn.Linear):
    """z = W h + b."""

    def description(self) -> dict[str, Any]:
        """Names of the saved tensors."""
        return {"kind": "linear", "cosine": False, "weight": "head.weight", "bias": "head.bias"}


class _CosineHead(nn.Module):
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.kaiming_normal_(self.weight)

    def cosines(self, h: Tensor) -> Tensor:
        """[N, K] float64 cosines, a little under 1 in size because of the epsilons."""
        h, w = h.double(), self.weight.double()
        h = h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + NORM_EPSILON)
        w = w / (torch.linalg.vector_norm(w, dim=1, keepdim=True) + NORM_EPSILON)
        return h @ w.T

    def temperature(self, h: Tensor) -> Tensor:
        """[N] temperature in (0, 1)."""
        raise NotImplementedError

    def forward(self, h: Tensor) -> Tensor:
        """[N, K] float32 logits: cosines over temperature."""
        return (self.cosines(h) / self.temperature(h).double()[:, None]).to(h.dtype)


class AbetHead(_CosineHead):
    """Cosine head with a temperature learned per sample."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.temperature_linear = nn.Linear(features, 1)
        self.temperature_norm = nn.BatchNorm1d(1)

    def temperature(self, h: Tensor) -> Tensor:
        """[N] temperature; in train mode the batch norm uses the batch's statistics."""
        return torch.sigmoid(self.temperature_norm(self.temperature_linear(h)))[:, 0] + TEMPERATURE_EPSILON

    def description(self) -> dict[str, Any]:
        """Names of the saved tensors and the batch norm's epsilon."""
        return {
            "kind": "abet",
            "cosine": True,
            "weight": "head.weight",
            "bias": None,
            "temperature": {
                "weight": "head.temperature_linear.weight",
                "bias": "head.temperature_linear.bias",
                "norm_weight": "head.temperature_norm.weight",
                "norm_bias": "head.temperature_norm.bias",
                "norm_mean": "head.temperature_norm.running_mean",
                "norm_variance": "head.temperature_norm.running_var",
                "norm_epsilon": self.temperature_norm.eps,
            },
        }


class CosineGlobalHead(_CosineHead):
    """Cosine head with one temperature learned for all samples."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        self.temperature_logit = nn.Parameter(torch.zeros(1))

    def temperature(self, h: Tensor) -> Tensor:
        """[N] the same temperature for every row."""
        return (torch.sigmoid(self.temperature_logit) + TEMPERATURE_EPSILON).expand(len(h))

    def description(self) -> dict[str, Any]:
        """Names of the saved tensors."""
        return {
            "kind": "cosine_global",
            "cosine": True,
            "weight": "head.weight",
            "bias": None,
            "temperature": {"bias": "head.temperature_logit"},
        }


KINDS: dict[str, type[nn.Module]] = {"linear": LinearHead, "abet": AbetHead, "cosine_global": CosineGlobalHead}


def build_head(kind: str, *, features: int, classes: int) -> nn.Module:
    """A freshly initialised head (draws from torch's global generator; the trainer seeds it)."""
    if kind not in KINDS:
        raise ValueError(f"unknown head '{kind}'; known: {', '.join(KINDS)}")
    return KINDS[kind](features, classes)
