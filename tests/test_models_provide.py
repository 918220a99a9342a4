"""Providing and loading: shipped, trained, the user's own; what is damaged is named, what is not finite is loaded."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from windtunnel import images
from windtunnel.backend import torch
from windtunnel.images import photodigits
from windtunnel.models import base, consistency, provide, ship, train, weights
from windtunnel.models.folder import CARD, MODULE, WEIGHTS, BadWeights, copy_folder, load_card, write_folder
from windtunnel.models.load import load_head, load_model
from windtunnel.models.own import BadModule
from windtunnel.models.spec import ModelSpec, read_catalogue, recipe_digest
from windtunnel.store import file_digest

REPOSITORY = Path(__file__).parent.parent
CATALOGUE = read_catalogue()


def small(head: str = "abet") -> ModelSpec:
    spec = CATALOGUE["digits-cnn"]
    recipe = {
        "network": {"channels": [8, 8, 8, 16], "blocks": [1, 1, 1, 1], "stem_width": 4, "output_stride": 8},
        "normalisation": spec.recipe["normalisation"],
        "training": spec.recipe["training"] | {"epochs": 1, "warmup_epochs": 0, "learning_rate": 0.005},
    }
    return dataclasses.replace(spec, name=f"small-{head}", head=head, recipe=recipe)


@contextmanager
def few_images() -> Iterator[None]:
    """Photodigits with a twentieth of an epoch, so that training takes a second; whole again afterwards."""
    whole = photodigits.training_epoch(0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photodigits, "training_epoch", lambda seed, epoch: (whole[0][:420], whole[1][:420]))
        yield


@pytest.fixture
def few() -> Iterator[None]:
    with few_images():
        yield


@pytest.fixture(scope="module")
def resources(tmp_path_factory) -> Path:
    """Three small models, trained and shipped once."""
    folder = tmp_path_factory.mktemp("resources")
    with few_images():
        for head in ("linear", "abet", "cosine_global"):
            provide.train_into(small(head), folder / "models" / f"small-{head}", origin="shipped")
    return folder


def test_card_says_what_the_model_is(resources):
    spec, folder = small(), resources / "models" / "small-abet"
    card = load_card(folder)
    assert card["recipe_digest"] == recipe_digest(spec) and card["recipe"] == spec.recipe
    assert card["origin"] == "shipped" and card["licence"] == "MIT" and card["has_nan"] is False
    assert card["data"]["training_digest"] == photodigits.training_digest()
    assert card["class_names"] == list("0123456789") and card["feature_dim"] == 16
    model = load_model(folder)
    assert card["parameters"] == sum(p.numel() for p in model.parameters())
    test = photodigits.build("test")
    x, y = train.as_tensors(test.images, test.labels)
    assert card["metrics"]["clean_accuracy"] == train.accuracy(model, x, y) and card["metrics"]["n"] == len(y)
    assert card["weights"]["sha256"] == file_digest(folder / WEIGHTS)
    assert "time" not in json.dumps(card) and "date" not in json.dumps(card)


def test_loaded_model_is_frozen_float32_and_half_on_disk(resources):
    from safetensors import safe_open

    folder = resources / "models" / "small-abet"
    model = load_model(folder)
    base.assert_frozen(model)
    assert all(t.dtype == torch.float32 for t in model.state_dict().values() if t.is_floating_point())
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        types = {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 (safe_open does not iterate)
    assert types["body.net.conv1.0.weight"] == np.float16
    assert types["head.weight"] == types["body.net.bn1.running_var"] == np.float32


@pytest.mark.parametrize("head", ["linear", "abet", "cosine_global"])
def test_head_without_torch_equals_head_with_torch(resources, head):
    folder = resources / "models" / f"small-{head}"
    without, with_torch = load_head(folder), load_model(folder).head_arrays()
    for field in dataclasses.fields(without):
        a, b = getattr(without, field.name), getattr(with_torch, field.name)
        assert (a is None) == (b is None) and (a is None or np.array_equal(a, b)), field.name
    assert (without.temperature_weight is not None) == (head == "abet")
    assert (without.temperature_bias is not None) == (head != "linear")


def test_copying_imports_no_library_and_heads_no_torch(resources, tmp_path):
    """A planning or scoring process must not pay for torch, nor a copy for anything."""
    code = f"""
import sys
from pathlib import Path
from windtunnel.models.folder import copy_folder
copy_folder(Path({str(resources / "models" / "small-abet")!r}), Path({str(tmp_path / "out")!r}))
assert not [m for m in ("numpy", "pyarrow", "pydantic") if m in sys.modules], "a copy needs no library"
from windtunnel.models.load import load_card, load_head
from windtunnel.models.spec import read_catalogue
read_catalogue()
assert load_card(Path({str(tmp_path / "out")!r}))["origin"] == "shipped"
assert load_head(Path({str(tmp_path / "out")!r})).weight.shape == (10, 16)
assert not [m for m in ("torch", "timm", "torchvision") if m in sys.modules], "torch was imported"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=REPOSITORY)


def test_shipped_weights_are_copied_byte_for_byte(resources, tmp_path):
    copy_folder(resources / "models" / "small-abet", tmp_path / "out")
    for name in (WEIGHTS, CARD):
        assert (tmp_path / "out" / name).read_bytes() == (resources / "models" / "small-abet" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [CARD, WEIGHTS]


def test_a_recipe_is_trained_and_the_same_bytes_come_out_twice(tmp_path, few):
    spec = dataclasses.replace(small("linear"), seed=7)
    for folder in ("one", "two"):
        provide.provide(spec, tmp_path / folder)
    assert load_card(tmp_path / "one")["origin"] == "trained"
    for name in (WEIGHTS, CARD):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def copy_of(resources: Path, target: Path, head: str = "abet") -> Path:
    source = resources / "models" / f"small-{head}"
    write_folder(target, files={WEIGHTS: (source / WEIGHTS).read_bytes()}, card=load_card(source))
    return target


def test_damaged_weights_are_named_with_both_digests_and_a_remedy(resources, tmp_path):
    folder = copy_of(resources, tmp_path / "models" / "small-abet")
    flip_a_bit(folder / WEIGHTS)
    expected, found = load_card(folder)["weights"]["sha256"], file_digest(folder / WEIGHTS)
    for read in (load_model, load_head):
        with pytest.raises(BadWeights, match=f"{WEIGHTS}.*expected {expected}, found {found}; delete"):
            read(folder)
    with pytest.raises(BadWeights, match=f"expected {expected}, found {found}; restore.*version control"):
        copy_folder(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    order = [sys.executable, "-m", "windtunnel.models.folder", str(folder / CARD), str(tmp_path / "out" / CARD)]
    job = subprocess.run(order, check=False, capture_output=True, text=True, cwd=REPOSITORY)
    assert job.returncode == 1
    assert job.stderr.startswith("windtunnel: model_copy out: ") and found in job.stderr


def test_missing_weights_and_missing_or_broken_card_are_named(resources, tmp_path):
    folder = copy_of(resources, tmp_path / "model")
    (folder / WEIGHTS).unlink()
    with pytest.raises(BadWeights, match="no such file"):
        load_head(folder)
    (folder / CARD).write_text("{")
    with pytest.raises(BadWeights, match="not JSON"):
        load_model(folder)
    with pytest.raises(BadWeights, match="card.json is missing"):
        load_model(tmp_path / "nowhere")


def test_weights_that_are_not_finite_are_loaded_and_said_to_be_so(resources, tmp_path):
    source = resources / "models" / "small-abet"
    state = weights.read_state(source / WEIGHTS)
    state["body.net.conv1.0.weight"][0, 0, 0, 0] = float("nan")
    content = weights.to_bytes(state, rounded=True)
    card = load_card(source)
    (tmp_path / WEIGHTS).write_bytes(content)
    card["weights"]["sha256"] = file_digest(tmp_path / WEIGHTS)
    write_folder(tmp_path / "nan", files={WEIGHTS: content}, card=card)
    model = load_model(tmp_path / "nan")
    assert model.has_nan is True and bool(model(torch.rand(2, 3, 32, 32)).isnan().any())
    with base.guarded(model):
        pass
    assert load_model(source).has_nan is False


def test_rounding_that_costs_accuracy_is_not_done(monkeypatch):
    model = base.freeze(torch.nn.Linear(2, 2, bias=False))
    # The two classes differ by less than float16 resolves at 1.
    model.weight.data = torch.tensor([[1.0, 0.0], [1.0001, 0.0]])
    x, y = torch.ones(10, 2), torch.ones(10, dtype=torch.int64)
    assert train.accuracy(model, x, y) == 1
    assert train._round_if_harmless(model, x, y, 1.0) == {"clean_accuracy": 1.0, "rounded": False}
    assert float(model.weight[1, 0]) == pytest.approx(1.0001, abs=1e-7)
    model.weight.data = torch.tensor([[1.0, 0.0], [1.3, 0.0]])
    assert train._round_if_harmless(model, x, y, 1.0) == {"clean_accuracy": 1.0, "rounded": True}
    assert float(model.weight[1, 0]) == float(np.float16(1.3))


def test_storing_as_half_what_half_does_not_hold_is_refused():
    with pytest.raises(ValueError, match="body.w holds values"):
        weights.to_bytes({"body.w": torch.full((2, 2), 1.0001)}, rounded=True)


def test_ship_refuses_an_unknown_name_and_leaves_what_is_current(resources, monkeypatch):
    with pytest.raises(LookupError, match="'digits-cn'; did you mean 'digits-cnn'"):
        ship.ship_all(["digits-cn"], resources=resources)
    monkeypatch.setattr(ship, "read_catalogue", lambda: {f"small-{h}": small(h) for h in ("linear", "abet")})
    monkeypatch.setattr(ship, "train_into", lambda *_, **__: pytest.fail("trained what is up to date"))
    assert set(ship.ship_all(resources=resources)) == {"small-linear", "small-abet"}


# ---- the user's own model

OWN = """
import torch

class Net(torch.nn.Module):
    def __init__(self, width, scale):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 3)
        self.fc = torch.nn.Linear(width, 4)
        self.scale = scale

    def forward(self, x):
        return self.fc(self.conv(2 * x - 1).relu().mean(dim=(2, 3))) * self.scale

def build(settings):
    return Net(settings["width"], settings.get("scale", 1))
"""


def own_spec(folder: Path, *, head: str | None = "fc", text: str = OWN, **settings) -> ModelSpec:
    from safetensors.torch import save_file

    (folder / "net.py").write_text(text)
    names: dict = {}
    exec(text, names)
    torch.manual_seed(0)
    save_file(names["build"]({"width": 6} | settings).state_dict(), folder / "net.safetensors")
    recipe = {
        "file": str(folder / "net.py"),
        "weights": str(folder / "net.safetensors"),
        "settings": {"width": 6} | settings,
        "head": head,
    }
    return ModelSpec(name="mine", architecture="file", head=None, recipe=recipe, dataset=None, classes=4)


def test_a_users_own_model_is_provided_loaded_and_has_a_head(tmp_path):
    provide.provide(own_spec(tmp_path), tmp_path / "out")
    card = load_card(tmp_path / "out")
    assert card["origin"] == "file" and card["metrics"] is None and card["feature_dim"] == 6
    model, head = load_model(tmp_path / "out"), load_head(tmp_path / "out")
    base.assert_frozen(model)
    x = torch.rand(5, 3, 16, 16)
    with base.guarded(model):
        h = model.features(x)
        torch.testing.assert_close(model.logits_from(h), model(x))
    np.testing.assert_allclose(head.logits(h.numpy()), model(x).numpy(), rtol=1e-4, atol=1e-5)
    assert np.array_equal(head.weight, model.head_arrays().weight)
    assert (tmp_path / "out" / MODULE).read_text() == OWN


def test_a_users_own_model_without_a_head_can_be_run_but_not_scored(tmp_path):
    provide.provide(own_spec(tmp_path, head=None), tmp_path / "out")
    model = load_model(tmp_path / "out")
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 4)
    for ask in (lambda: model.features(torch.rand(2, 3, 16, 16)), model.head_arrays):
        with pytest.raises(base.HeadUnavailable, match="head"):
            ask()
    with pytest.raises(LookupError, match="names no 'head'"):
        load_head(tmp_path / "out")


def test_a_head_that_is_not_the_last_thing_is_found_out(tmp_path):
    provide.provide(own_spec(tmp_path, scale=3), tmp_path / "out")
    with pytest.raises(BadModule, match="after the layer 'fc'"):
        load_model(tmp_path / "out").features(torch.rand(2, 3, 16, 16))


def test_mistakes_in_a_users_own_model_are_said_in_words(tmp_path):
    for change, message in [
        ({"head": "classifier"}, "no Linear layer of the module; there are: fc"),
        ({"text": OWN + "\ndef build(settings):\n    return 3\n"}, "returned int"),
        ({"text": OWN.replace("def build", "def construct")}, r"no function build\(settings\)"),
    ]:
        spec = own_spec(tmp_path)
        if "head" in change:
            spec = dataclasses.replace(spec, recipe=spec.recipe | {"head": change["head"]})
        else:
            (tmp_path / "net.py").write_text(change["text"])
        with pytest.raises(BadModule, match=message):
            provide.provide(spec, tmp_path / "out")
    spec = own_spec(tmp_path)
    wider = dataclasses.replace(spec, recipe=spec.recipe | {"settings": {"width": 7}})
    with pytest.raises(BadModule, match="do not fit the module"):
        provide.provide(wider, tmp_path / "out")


def test_an_edited_module_is_another_model_and_a_changed_copy_is_refused(tmp_path):
    spec = own_spec(tmp_path)
    provide.provide(spec, tmp_path / "out")
    before = recipe_digest(spec)
    (tmp_path / "net.py").write_text(OWN + "\n# edited\n")
    assert recipe_digest(spec) != before
    (tmp_path / "out" / MODULE).write_text(OWN + "\n# edited\n")
    with pytest.raises(BadWeights, match=MODULE):
        load_model(tmp_path / "out")


# ---- what ships

SAMPLED = ["digits-cnn", "digits-at", "digits-abet", "digits-vit", "digits-topk", "digits64-cnn", "context-plain"]
SHIPPED = sorted((REPOSITORY / "resources" / "models").glob("*/card.json"))


def test_every_model_of_the_catalogue_ships_and_fits_its_recipe():
    assert {p.parent.name for p in SHIPPED} == set(CATALOGUE)
    for path in SHIPPED:
        card = load_card(path.parent)
        assert card["recipe_digest"] == recipe_digest(CATALOGUE[card["name"]]), card["name"]
        assert card["origin"] == "shipped" and card["weights"]["bytes"] < 2.2 * card["parameters"], "half precision"
        head = load_head(path.parent)
        assert head.weight.shape == (card["classes"], card["feature_dim"])


def test_training_images_are_still_those_the_shipped_weights_saw():
    """Pixels that moved without a new RECIPE_VERSION would leave weights and data apart unnoticed."""
    for seed in (0, 1):
        name = f"digits-cnn{'-s1' if seed else ''}"
        card = load_card(REPOSITORY / "resources" / "models" / name)
        assert card["data"]["first_epoch_sha256"] == train.first_epoch_digest(CATALOGUE[name])


def test_shipped_models_are_as_good_as_promised():
    cards = {p.parent.name: load_card(p.parent) for p in SHIPPED}

    def mean(entry: str) -> float:
        found = [c["metrics"]["clean_accuracy"] for n, c in cards.items() if n.split("-s")[0] == entry]
        return float(np.mean(found))

    assert mean("digits-cnn") >= 0.93
    robust = [c["metrics"]["pgd20_accuracy"]["8"] for n, c in cards.items() if n.startswith("digits-at")]
    assert min(robust) >= 0.5 and mean("digits-at") >= 0.87
    assert mean("digits-vit") >= 0.88
    assert min(cards[n]["metrics"]["noisy_accuracy"]["0.25"] for n in ("digits-noise", "digits-consistency")) >= 0.8


@pytest.mark.parametrize("name", SAMPLED)
def test_shipped_weights_give_the_accuracy_of_their_card(name):
    """Another CPU rounds differently: a sample or two may tip, no more."""
    folder = REPOSITORY / "resources" / "models" / name
    test = images.build(CATALOGUE[name].dataset, load_card(folder)["metrics"]["split"])
    x, y = train.as_tensors(test.images, test.labels)
    assert train.accuracy(load_model(folder), x, y) == pytest.approx(
        load_card(folder)["metrics"]["clean_accuracy"], abs=0.005
    )


def test_consistency_training_made_two_noisy_views_agree_more():
    test = photodigits.build("test")
    x, _ = train.as_tensors(test.images[:125], test.labels[:125])
    noisy = consistency.noisy_views(x, sigma=0.25, views=2, generator=torch.Generator().manual_seed(0))
    apart = {}
    for name in ("digits-noise", "digits-consistency"):
        model = load_model(REPOSITORY / "resources" / "models" / name)
        one, two = torch.softmax(model(noisy), dim=1).chunk(2)
        apart[name] = float((one - two).abs().sum(dim=1).mean())
    assert apart["digits-consistency"] < 0.9 * apart["digits-noise"], apart


def test_the_foreground_expert_of_the_fusion_is_the_one_that_ships_alone():
    folder = REPOSITORY / "resources" / "models"
    fused, alone = load_model(folder / "context-fusion").body.foreground, load_model(folder / "context-foreground").body
    assert base.state_digest(fused) == base.state_digest(alone)
