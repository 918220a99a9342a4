"""Networks that defenses carry: trained or taken from a file, stored, loaded, refused in words; what the plan knows."""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from windtunnel import registry
from windtunnel.backend import torch
from windtunnel.catalogue import Catalogue, CatalogueSection, ConfigError
from windtunnel.defenses.base import LearnedDefense, UnboundDefense, repeat
from windtunnel.networks.base import Network, NoTraining, TrainingData
from windtunnel.networks.batches import SIZE, in_fixed_batches
from windtunnel.networks.provide import BadNetwork, load, provide
from windtunnel.plan import Plan

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "examples" / "own_methods"
OWN = {
    "networks": {
        "filter": {"method": "mine/smoothing_filter.py", "dataset": "photodigits", "seeds": [0, 3], "argument": "size"}
    },
    "defenses": {
        "smoother": {"method": "mine/smoother.py", "network": "filter"},
        "sized": {
            "method": "mine/smoother.py", "network": "filter",
            "argument": "size", "minimum": 3, "maximum": 9, "step": 2,
        },
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Line(Network):
    """a x + b, learned from images twice as bright."""

    def build(self) -> torch.nn.Module:
        return torch.nn.Conv2d(3, 3, 1)

    def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
        images, _ = data.epoch(0)
        x = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2) / 255
        optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(20):
            loss = (module(x) - 2 * x).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def measure(self, module: torch.nn.Module, data: TrainingData) -> dict[str, Any]:
        return {"weight": float(module.weight[0, 0, 0, 0])}

    def adopt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.removeprefix("net."): value for name, value in state.items()}


class Fixed(Line):
    train = Network.train


def data(seed: int = 0) -> TrainingData:
    images = np.random.default_rng(seed).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
    return TrainingData(epoch=lambda e: (images, np.zeros(8, np.int64)), held_out=np.zeros((1, 3, 6, 6), np.float32),
                        labels=np.zeros(1, np.int64))  # fmt: skip


def trained(folder: Path, seed: int = 0) -> dict[str, Any]:
    return provide(Line(), folder, identity={"a": 1}, digest="d" * 64, seed=seed, origin="trained", data=data)


def test_what_is_stored_is_what_was_measured_and_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    card = trained(tmp_path / "a")
    assert torch.equal(before, torch.random.get_rng_state()), "training moved the caller's random state"
    assert card == trained(tmp_path / "b") and card != trained(tmp_path / "c", seed=1)
    for name in ("weights.safetensors", "card.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    module = load(Line(), tmp_path / "a")
    assert float(module.weight[0, 0, 0, 0]) == card["metrics"]["weight"]
    assert not module.training and not any(p.requires_grad for p in module.parameters())
    assert card["parameters"] == 12 and card["recipe_digest"] == "d" * 64


def test_a_damaged_or_foreign_folder_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadNetwork, match="run the rule network_provide"):
        load(Line(), tmp_path)
    trained(tmp_path)
    with pytest.raises(BadNetwork, match="does not describe the network"):
        load(type("Other", (Line,), {"build": lambda self: torch.nn.Linear(2, 2)})(), tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadNetwork, match="expected .* found"):
        load(Line(), tmp_path)


def test_weights_from_a_file_need_their_digest_and_no_pickled_code(tmp_path: Path) -> None:
    common: dict[str, Any] = {"identity": {}, "digest": "d" * 64, "seed": 0, "origin": "file"}
    state = {"net.weight": torch.ones(3, 3, 1, 1), "net.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        file = tmp_path / name
        right = hashlib.sha256(file.read_bytes()).hexdigest()
        provide(Fixed(), tmp_path / "out", **common, file=file, sha256=right)
        assert torch.equal(load(Fixed(), tmp_path / "out").weight, state["net.weight"])
        with pytest.raises(BadNetwork, match=f"expected {'0' * 64}, found {right}"):
            provide(Fixed(), tmp_path / "bad", **common, file=file, sha256="0" * 64)
        with pytest.raises(BadNetwork, match="declare sha256"):
            provide(Fixed(), tmp_path / "bad", **common, file=file)
    assert not (tmp_path / "bad").exists()

    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    evil = tmp_path / "evil.pt"
    evil.write_bytes(pickle.dumps({"w": Harm()}))
    torch.save({"w": Harm()}, evil)
    with pytest.raises(BadNetwork, match="holds more than tensors"):
        provide(Fixed(), tmp_path / "bad", **common, file=evil, sha256=hashlib.sha256(evil.read_bytes()).hexdigest())
    assert not (tmp_path / "harm").exists()
    wrong = tmp_path / "wrong.safetensors"
    save_file({"net.other": torch.ones(1)}, wrong)
    with pytest.raises(BadNetwork, match="does not hold weights of Fixed"):
        provide(Fixed(), tmp_path / "bad", **common, file=wrong, sha256=hashlib.sha256(wrong.read_bytes()).hexdigest())
    with pytest.raises(NoTraining, match="give its weights"):
        provide(Fixed(), tmp_path / "bad", **common, data=data)


def test_weights_that_are_not_finite_are_never_written(tmp_path: Path) -> None:
    class Broken(Line):
        def train(self, module: torch.nn.Module, data: TrainingData, *, seed: int) -> None:
            module.bias.data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="not finite"):
        provide(Broken(), tmp_path / "x", identity={}, digest="d" * 64, seed=0, origin="trained", data=data)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("n", [0, 1, SIZE - 1, SIZE, 2 * SIZE + 3])
def test_fixed_batches_give_each_image_its_own_answer(n: int) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3))
    images = np.random.default_rng(1).random((n, 3, 8, 8), dtype=np.float32)
    shapes = []

    def function(x: torch.Tensor) -> torch.Tensor:
        shapes.append(len(x))
        return module(x)

    found = in_fixed_batches(function, images)
    assert set(shapes) <= {SIZE} and len(found) == n
    for row in range(0, n, 5):
        assert np.array_equal(found[row], in_fixed_batches(module, images[row : row + 1])[0])


def test_a_learned_defense_works_only_with_its_network() -> None:
    cls = registry.load("defense", str(EXAMPLE / "mine" / "smoother.py"))
    defense = cls()
    assert isinstance(defense, LearnedDefense)
    images = np.random.default_rng(2).random((3, 3, 8, 8), dtype=np.float32)
    with pytest.raises(UnboundDefense, match="carrying"):
        repeat(defense, images, 1)
    module = torch.nn.Conv2d(3, 3, 1, groups=3, bias=False)
    torch.nn.init.constant_(module.weight, 0.5)
    bound = defense.carrying(module.requires_grad_(False))
    assert np.allclose(repeat(bound, images, 2).images, 0.25 * images)
    with pytest.raises(UnboundDefense):
        _ = defense.module


# ------------------------------------------------------------------------------------------------------ names and plan


def own(**more: Any) -> Catalogue:
    return Catalogue(CatalogueSection.model_validate({**OWN, **more}), EXAMPLE)


def test_names_of_learned_defenses_and_their_networks() -> None:
    catalogue = own()
    found = catalogue.defense("sized-5-s3-x2")
    assert (found.family, found.rounds, found.network, found.networks) == ("sized", 2, "filter-5-s3", ("filter-5-s3",))
    assert catalogue.defense("sized-5").network == "filter-5"
    assert catalogue.network("filter-5-s3").settings["size"] == 5
    chain = catalogue.defense("jpeg-50-then-sized-3-x2")
    assert chain.networks == ("filter-3",) and chain.rounds == 2
    for name, said in {
        "sized-5-s1": "no training seed 1; it has",
        "sized-5-s0-x2": "the first training seed has no suffix; write 'sized-5'",
        "jpeg-50-s1": "is not trained and has no seeds; write 'jpeg-50'",
        "sized-4": "in steps of 2",
        "smoother": "write 'filter-<size>'",
    }.items():
        with pytest.raises(LookupError, match=said):
            catalogue.defense(name)


def test_an_entry_says_where_its_weights_come_from() -> None:
    def refused(**entry: Any) -> str:
        with pytest.raises(ConfigError) as error:
            Plan.of(
                {
                    "blocks": [{"images": "photodigits.test", "models": "digits-cnn", "defenses": "mine"}],
                    "catalogue": {
                        "networks": {"n": {"method": "mine/smoothing_filter.py", **entry}},
                        "defenses": {"mine": {"method": "mine/smoother.py", "network": "n"}},
                    },
                },
                base=EXAMPLE,
            )
        return str(error.value)

    assert "give exactly one of the two" in refused()
    assert "give weights and sha256 together" in refused(weights="w.pt")
    assert "no file" in refused(weights="w.pt", sha256="0" * 64)
    assert "unknown data set 'nowhere'" in refused(dataset="nowhere")
    assert "unknown model 'digits-cnm'; did you mean 'digits-cnn'" in refused(
        dataset="photodigits", teachers=["digits-cnm"]
    )
    with pytest.raises(LookupError, match="needs network: <name>"):
        own(networks={}, defenses={"mine": {"method": "mine/smoother.py"}}).defense("mine")
    with pytest.raises(LookupError, match="leave network out"):
        own(defenses={"mine": {"method": "mine/mirror.py", "network": "filter"}}).defense("mine")


def asked(defense: str, **block: Any) -> Plan:
    wanted = {"images": "photodigits.test", "models": "digits-cnn", "defenses": ["none", defense], **block}
    return Plan.of({"blocks": [wanted], "catalogue": OWN}, base=EXAMPLE)


def test_every_job_that_needs_a_network_waits_for_it_and_knows_its_recipe() -> None:
    plan = asked("sized-5-s3", attacks=["none", "pgd20"], threats=["none", "linf-8"], through="all")
    files = ["results/networks/filter-5-s3/card.json", "results/networks/filter-5-s3/weights.safetensors"]
    assert plan.networks == plan.trained_networks == ["filter-5-s3"]
    assert plan.purify_inputs("photodigits", "sized")[-2:] == files
    assert plan.attack_inputs("digits-cnn", "photodigits.test", "through")[-2:] == files
    assert plan.observe_inputs("digits-cnn", "through")["networks"] == files
    assert plan.observe_inputs("digits-cnn", "clean")["networks"] == files
    assert plan.bill()["jobs"] == sum(plan.count_jobs().values()) and plan.count_jobs()["network_provide"] == 1
    digests = {asked(name).network_digest(asked(name).networks[0]) for name in ("sized-5", "sized-5-s3", "sized-3")}
    assert len(digests) == 3
    assert json.dumps(plan.network_settings("filter-5-s3"))
    assert plan.defense_settings("sized-5-s3")["networks"] == {"filter-5-s3": plan.network_digest("filter-5-s3")}


def test_a_teacher_does_not_judge_what_it_taught() -> None:
    taught = {**OWN, "networks": {"filter": {**OWN["networks"]["filter"], "teachers": ["digits-cnn-s1"]}}}

    def refused(model: str, **more: Any) -> str:
        block = {"images": "photodigits.test", "models": model, "defenses": ["none", "sized-5"], **more}
        try:
            Plan.of({"blocks": [block], "catalogue": taught}, base=EXAMPLE)
        except ConfigError as error:
            return str(error)
        return ""

    assert not refused("digits-cnn")
    assert "'sized-5' may not be judged by 'digits-cnn-s1', which taught its network 'filter-5'" in refused(
        "digits-cnn", seeds="all"
    )
    assert not refused("digits-cnn-s1", defenses="none")


def test_a_users_images_train_on_train_and_are_measured_on_fit_whatever_scores_are_fitted_on(tmp_path: Path) -> None:
    for split in ("train", "fit", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(split.encode())
    images = {f"mine.{split}": {"file": f"{split}.parquet", "role": "id" if split == "test" else split} for split in
              ("train", "fit", "test")}  # fmt: skip
    (tmp_path / "mine").symlink_to(EXAMPLE / "mine")

    def planned(fit_on: str) -> Plan:
        section = {**OWN, "images": images}
        section["networks"] = {"filter": {"method": "mine/smoothing_filter.py", "dataset": "mine"}}
        section["defenses"] = {"smoother": {"method": "mine/smoother.py", "network": "filter"}}
        block = {"images": "mine.test", "models": "digits-cnn", "defenses": "smoother"}
        return Plan.of({"blocks": [block], "catalogue": section, "fit_on": fit_on}, base=tmp_path)

    one, other = planned("train"), planned("fit")
    assert one.network_digest("filter") == other.network_digest("filter")
    assert {"train", "fit"} <= set(one.datasets["mine"])
    assert one.network_inputs("filter") == ["results/images/mine/manifest.json"]
    (tmp_path / "fit.parquet").write_bytes(b"other")
    assert planned("fit").network_digest("filter") != other.network_digest("filter")
