"""A network's folder: trained into it or taken from a file, checked and read from it.

    weights.safetensors   the module (large tensors as float16, see models/weights.py)
    card.json             identity, recipe digest, metrics of the module as stored, digest of the weights

The same call writes the same bytes on one machine.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from windtunnel.backend import torch
from windtunnel.models.base import freeze
from windtunnel.models.folder import CARD, WEIGHTS, BadWeights, check_file, load_card, write_folder
from windtunnel.models.weights import non_finite, read_state, round_to_half, to_bytes
from windtunnel.networks.base import Network, State, TrainingData

REMEDY = "delete the folder and provide the network again"


class BadNetwork(RuntimeError):
    """A network's folder or file that is missing, half written, damaged or of another architecture."""


def provide(
    network: Network,
    folder: Path,
    *,
    identity: dict[str, Any],
    digest: str,
    seed: int,
    origin: str,
    data: Callable[[], TrainingData] | None = None,
    file: Path | None = None,
    sha256: str | None = None,
) -> dict[str, Any]:
    """Train the network on ``data()``, or take ``file`` (whose SHA-256 must be ``sha256``), into ``folder``.

    ``identity`` (JSON) and its ``digest`` are what the plan knows it by; they stand on the card. The module is rounded
    to what float16 holds before it is measured, so that the stored module is the measured one. Returns the card.
    """
    module = _fresh(network, seed)
    if file is not None:
        _take(module, network, file, sha256)
        metrics: dict[str, Any] = {}
    elif data is not None:
        given = data()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            module.train()
            network.train(module, given, seed=seed)
        freeze(module)
        module.load_state_dict({name: round_to_half(name, value) for name, value in module.state_dict().items()})
        metrics = network.measure(module, given)
    else:
        raise ValueError("a network needs data to be trained on, or a file of weights")
    if broken := non_finite(module.state_dict()):
        raise FloatingPointError(f"the network's weights are not finite: {broken[:3]}; lower the learning rate")
    content = to_bytes(module.state_dict(), rounded=file is None)
    card = {
        "kind": "network",
        "identity": identity,
        "recipe_digest": digest,
        "seed": seed,
        "origin": origin,
        "parameters": sum(p.numel() for p in module.parameters()),
        "metrics": metrics,
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)},
    }
    write_folder(folder, files={WEIGHTS: content}, card=card)
    return card


def load(network: Network, folder: Path) -> torch.nn.Module:
    """The frozen module of a folder. Raises ``BadNetwork`` naming the file and the remedy."""
    if not (folder / CARD).is_file():
        raise BadNetwork(f"no network in '{folder}': {CARD} is missing; run the rule network_provide")
    try:
        card = load_card(folder)
        check_file(folder / WEIGHTS, card["weights"]["sha256"], remedy=REMEDY)
        module = _fresh(network, 0)
        module.load_state_dict(read_state(folder / WEIGHTS))
    except BadWeights as error:
        raise BadNetwork(str(error)) from None
    except (KeyError, TypeError, RuntimeError) as error:
        raise BadNetwork(f"'{folder / CARD}' does not describe the network beside it ({error}); {REMEDY}") from None
    return freeze(module)


def _fresh(network: Network, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.build()


def _take(module: torch.nn.Module, network: Network, file: Path, sha256: str | None) -> None:
    """Weights from a file, whose digest is checked before a byte of it is read as anything but bytes."""
    if sha256 is None:
        raise BadNetwork(f"'{file}': weights from outside need their digest: declare sha256 in the catalogue entry")
    try:
        check_file(file, sha256, remedy="download it again, or correct sha256 in the catalogue entry")
    except BadWeights as error:
        raise BadNetwork(str(error)) from None
    try:
        module.load_state_dict(network.adopt(_read_any(file)))
    except (RuntimeError, KeyError, TypeError) as error:
        raise BadNetwork(f"'{file}' does not hold weights of {type(network).__name__}: {str(error)[:300]}") from None
    freeze(module)


def _read_any(file: Path) -> State:
    """The tensors of a safetensors file, or of a torch file read by keys and tensors alone (no pickled code)."""
    if file.suffix == ".safetensors":
        return read_state(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadNetwork(
            f"'{file}' holds more than tensors, which is refused ({str(error).splitlines()[0][:120]}); "
            f"save its state dict as safetensors"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
