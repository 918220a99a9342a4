"""Class activation maps against closed forms, alphas by hand, other libraries' decompositions; and how maps agree."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from windtunnel import images
from windtunnel.backend import torch
from windtunnel.engine import RowRandom
from windtunnel.explain.agreement import overlap, rank_correlation, strongest
from windtunnel.explain.base import (
    EXPLAINERS,
    NotExplainable,
    enlarged,
    explainer_named,
    feature_maps,
    normalised,
    slopes,
)
from windtunnel.explain.eigen_cam import EigenCam, principal
from windtunnel.explain.grad_cam import GradCam
from windtunnel.explain.smooth_grad_cam_pp import SmoothGradCamPp, channel_weights
from windtunnel.models.base import Classifier, freeze, guarded, state_digest
from windtunnel.models.load import load_model
from windtunnel.stages.purify import nchw

MODELS = Path(__file__).parents[1] / "resources" / "models"
Tensor = torch.Tensor


class Curved(torch.nn.Module):
    """Maps of the image's channels and their products, in float64; a head that is not linear."""

    def __init__(self, *, pooled: bool = True) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.register_buffer("w", torch.from_numpy(rng.normal(size=(5, 7))))
        self.pooled = pooled
        freeze(self)

    def maps(self, x: Tensor) -> Tensor:
        x = x.double()
        parts = [x, x[:, :1] * x[:, 1:2], x[:, 1:2] * x[:, 2:], x[:, :1] ** 2 - 0.2, torch.sin(9 * x[:, 2:])]
        return torch.cat(parts, dim=1)

    def features(self, x: Tensor) -> Tensor:
        maps = self.maps(x)
        return maps.mean((2, 3)) if self.pooled else maps.amax((2, 3))

    def logits_from(self, features: Tensor) -> Tensor:
        return torch.tanh(features[:, None, :] * self.w).sum(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits_from(self.features(x))


@cache
def samples(n: int = 24) -> tuple[Tensor, Tensor]:
    test = images.build("photodigits", "test")
    return torch.from_numpy(nchw(test.images[:n])), torch.from_numpy(np.asarray(test.labels[:n]).astype(np.int64))


@cache
def shipped(name: str) -> Classifier:
    return load_model(MODELS / name)


def random_images(n: int = 6, size: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).uniform(0, 1, (n, 3, size, size)).astype(np.float32))


def streams(n: int, seed: int = 0) -> RowRandom:
    return RowRandom.keyed(seed, [f"sample-{i}" for i in range(n)])


# ------------------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("model", ["digits-cnn", "digits-abet", "digits-vit"])
@pytest.mark.parametrize("name", EXPLAINERS)
def test_maps_lie_between_0_and_1_reach_1_and_leave_the_model_as_it_was(name: str, model: str) -> None:
    x, y = samples()
    kept, before, state = x.clone(), state_digest(shipped(model)), torch.random.get_rng_state()
    explainer = explainer_named(name)
    with guarded(shipped(model)), torch.no_grad():
        found = explainer.explain(shipped(model), x, y, streams(24))
    assert found.shape == (24, 4, 4) and found.dtype == np.float64
    assert (
        found.min() >= 0 and np.isin(found.max(axis=(1, 2)), (0.0, 1.0)).all() and (found.max(axis=(1, 2)) == 1).any()
    )
    assert torch.equal(x, kept) and state_digest(shipped(model)) == before
    assert torch.equal(state, torch.random.get_rng_state())
    parts = [slice(0, 5), slice(5, 24)]
    split = [explainer.explain(shipped(model), x[p], y[p], streams(24).select(torch.arange(24)[p])) for p in parts]
    assert np.abs(np.concatenate(split) - found).max() < 1e-3  # the network's own rounding depends on the batch
    assert np.array_equal(explainer.explain(shipped(model), x, y, streams(24)), found)
    other = explainer.explain(shipped(model), x, (y + 1) % 10, streams(24))
    assert np.array_equal(other, found) == (name == "eigen_cam")


@pytest.mark.parametrize("name", EXPLAINERS)
def test_rows_do_not_know_of_each_other_and_one_that_is_not_finite_stays_alone(name: str) -> None:
    x, classes = random_images(), torch.arange(6) % 5
    explainer, model = explainer_named(name), Curved()
    whole = explainer.explain(model, x, classes, streams(6))
    order = torch.tensor([4, 0, 5])
    part = explainer.explain(model, x[order], classes[order], streams(6).select(order))
    assert np.array_equal(part, whole[order.numpy()])
    broken = x.clone()
    broken[2, 0, 0, 0] = torch.nan
    found = explainer.explain(model, broken, classes, streams(6))
    assert np.isnan(found[2]).any()
    rest = [0, 1, 3, 4, 5]
    assert np.array_equal(found[rest], whole[rest]) and np.isfinite(whole).all()
    assert explainer.explain(model, x[:0], classes[:0], streams(0)).shape == (0, 3, 3)


@pytest.mark.parametrize("name", EXPLAINERS)
def test_models_without_maps_or_with_another_pooling_are_refused(name: str) -> None:
    explainer, x, classes = explainer_named(name), random_images(), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(NotExplainable, match="maps"):
        explainer.explain(freeze(torch.nn.Flatten()), x, classes, streams(6))
    with pytest.raises(NotExplainable, match="mean"):
        explainer.explain(Curved(pooled=False), x, classes, streams(6))

    class Own(Curved):
        def maps(self, x: Tensor) -> Tensor:
            raise LookupError("the feature maps of a user's own model are not known")

    with pytest.raises(NotExplainable, match="user's own"):
        explainer.explain(Own(), x, classes, streams(6))


def test_every_file_is_an_explainer_and_unknown_names_and_settings_are_refused() -> None:
    import windtunnel.explain

    files = {p.stem for p in Path(windtunnel.explain.__file__).parent.glob("*.py")}
    assert files - {"__init__", "base", "agreement"} == set(EXPLAINERS)
    assert explainer_named("smooth_grad_cam_pp", samples=2, noise=0.1) == SmoothGradCamPp(samples=2, noise=0.1)
    with pytest.raises(ValueError, match="unknown explainer 'gradcam'"):
        explainer_named("gradcam")
    for wrong in ({"samples": 0}, {"noise": -0.1}):
        with pytest.raises(ValueError, match="at least"):
            SmoothGradCamPp(**wrong)
    with pytest.raises(TypeError, match="stream"):
        SmoothGradCamPp().explain(Curved(), random_images(), torch.zeros(6, dtype=torch.int64))


# ----------------------------------------------------------------------------------------------------------- Grad-CAM


@pytest.mark.parametrize("name", ["digits-cnn", "digits-vit"])
def test_grad_cam_of_a_linear_head_on_pooled_maps_is_the_class_activation_map(name: str) -> None:
    model = shipped(name)
    x, y = samples()
    head = model.head_arrays()
    with torch.no_grad():
        maps = model.maps(x).double().numpy()
    expected = np.maximum(np.einsum("nkhw,nk->nhw", maps, head.weight[y.numpy()].astype(np.float64)), 0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    assert np.abs(GradCam().explain(model, x, y) - expected).max() < 1e-6


def test_grad_cam_weights_are_the_mean_slopes_found_by_finite_differences() -> None:
    model, x, classes = Curved(), random_images(3), torch.tensor([0, 3, 4])
    maps = feature_maps(model, x)
    rise = 1e-6
    weights = np.zeros((3, 7))
    for k in range(7):
        for i in range(3):
            for j in range(3):
                moved = [maps.clone(), maps.clone()]
                moved[0][:, k, i, j] += rise
                moved[1][:, k, i, j] -= rise
                up, down = (model.logits_from(m.mean((2, 3))).gather(1, classes[:, None])[:, 0] for m in moved)
                weights[:, k] += ((up - down) / (2 * rise)).numpy() / 9
    assert np.abs(slopes(model, maps, classes).mean((2, 3)).numpy() - weights).max() < 1e-9
    expected = normalised(np.einsum("nkhw,nk->nhw", maps.numpy(), weights))
    assert np.abs(GradCam().explain(model, x, classes) - expected).max() < 1e-6


# ------------------------------------------------------------------------------------------------- Smooth Grad-CAM++


def test_grad_cam_pp_alphas_by_hand() -> None:
    """Channel 0: A sums to 4; alpha = .25 / (.5 + .125 * 4) = 1/4 and 1 / (2 - 4) = -1/2, of which ReLU(g) keeps the
    first: 1/4 * 1/2. Channel 1: A is zero, alpha = 1/2 twice: (1 + 2) / 2. Channel 2: no slope. Channel 3: the
    denominator 2 * 1 - 2 cancels, and alpha is 0."""
    maps = torch.tensor([[1.0, 3.0], [0.0, 0.0], [5.0, 5.0], [-1.0, -1.0]]).view(1, 4, 1, 2)
    g = torch.tensor([[0.5, -1.0], [1.0, 2.0], [0.0, 0.0], [1.0, 1.0]]).view(1, 4, 1, 2)
    assert channel_weights(maps, g, g**2, g**3)[0].tolist() == [0.125, 1.5, 0.0, 0.0]


def test_one_copy_without_noise_is_grad_cam_pp_and_copies_average_their_powers() -> None:
    model, x, classes = Curved(), random_images(), torch.arange(6) % 5
    maps = feature_maps(model, x).numpy()

    def expected(slopes_of_copies: list[np.ndarray]) -> np.ndarray:
        first, second, third = (np.mean([g**p for g in slopes_of_copies], axis=0) for p in (1, 2, 3))
        out = np.zeros((6, 3, 3))
        for n in range(6):
            for k in range(7):
                below = 2 * second[n, k] + maps[n, k].sum() * third[n, k]
                out[n] += (second[n, k] / below * np.maximum(first[n, k], 0)).sum() * maps[n, k]
        return normalised(out)

    def slope(image: Tensor) -> np.ndarray:
        return slopes(model, feature_maps(model, image), classes).numpy()

    plain = SmoothGradCamPp(samples=1, noise=0.0).explain(model, x, classes)
    assert np.abs(plain - expected([slope(x)])).max() < 1e-9
    drawn = streams(6)
    copies = [slope(x + 0.3 * drawn.normal(3, 3, 3)) for _ in range(3)]
    smooth = SmoothGradCamPp(samples=3, noise=0.3).explain(model, x, classes, streams(6))
    assert np.abs(smooth - expected(copies)).max() < 1e-9
    assert np.abs(smooth - plain).max() > 0.01  # the noise does something
    assert not np.array_equal(smooth, SmoothGradCamPp(samples=3, noise=0.3).explain(model, x, classes, streams(6, 1)))


# ---------------------------------------------------------------------------------------------------------- Eigen-CAM


def test_eigen_cam_of_rank_one_maps_is_their_common_picture_whatever_the_sign_of_the_channels() -> None:
    rng = np.random.default_rng(0)
    picture, channels = rng.uniform(0, 2, (3, 4)), rng.normal(size=6)
    for sign in (1.0, -1.0):
        found = principal((sign * channels)[None, :, None, None] * picture[None, None])
        assert np.abs(found[0] - picture / picture.max()).max() < 1e-12
    signed = np.array([[3.0, -2.0], [1.0, -1.0]])  # sums to 1: stays; turned round it sums to -1: is turned back
    for sign in (1.0, -1.0):
        found = principal(sign * np.ones((1, 5, 1, 1)) * signed)
        assert np.abs(found[0] - [[1, 0], [1 / 3, 0]]).max() < 1e-12
    level = np.array([[-3.0, 2.0], [0.5, 0.5]])  # sums to 0: the largest in size is positive
    assert np.abs(principal(np.ones((1, 5, 1, 1)) * level)[0] - [[1, 0], [0, 0]]).max() < 1e-12
    assert (principal(np.zeros((1, 5, 2, 2))) == 0).all()


def test_eigen_cam_is_another_librarys_decomposition_up_to_the_sign() -> None:
    from sklearn.decomposition import TruncatedSVD

    x, y = samples(6)
    with torch.no_grad():
        maps = shipped("digits-vit").maps(x).double().numpy()
    found = EigenCam().explain(shipped("digits-vit"), x, y)
    for row, of in zip(found, maps, strict=True):
        projected = TruncatedSVD(1, algorithm="arpack", random_state=0).fit_transform(of.reshape(len(of), -1).T)[:, 0]
        projected *= np.sign(projected.sum())
        assert np.abs(row.ravel() - np.maximum(projected, 0) / projected.max()).max() < 1e-9


# ------------------------------------------------------------------------------------------- how maps agree, pictures


def test_strongest_places_and_their_overlap() -> None:
    one = np.array([[0.9, 0.1, 0.0, 1.0, 0.2], [0.3, 0.3, 0.3, 0.0, 0.0]])[:, None]
    assert strongest(one, 0.4)[:, 0].tolist() == [[True, False, False, True, False], [True, True, True, False, False]]
    assert strongest(one, 0.01).sum(axis=(1, 2)).tolist() == [1, 3]  # at least one, ties included
    assert strongest(one, 0.9)[1, 0].tolist() == [True, True, True, False, False]  # never a place without evidence
    other = np.array([[0.9, 0.0, 0.0, 0.1, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0]])[:, None]
    assert overlap(one, other, 0.4).tolist() == [1 / 3, 0.0]
    assert overlap(one, one, 0.4).tolist() == [1.0, 1.0]
    nothing = np.zeros((2, 1, 5))
    nothing[1, 0, 0] = np.nan
    assert np.isnan(overlap(nothing, nothing, 0.4)).all() and np.isnan(overlap(one, nothing, 0.4)[1])
    for share in (0.0, 1.0):
        with pytest.raises(ValueError, match="share"):
            strongest(one, share)


def test_overlap_of_unrelated_maps_is_what_counting_says() -> None:
    """Three of 16 places each: 1/5 with probability 234/560, 1/2 with 39/560, 1 with 1/560."""
    a, b = np.random.default_rng(0).uniform(size=(2, 20000, 4, 4))
    expected = (234 / 5 + 39 / 2 + 1) / 560
    assert overlap(a, b, 0.2).mean() == pytest.approx(expected, abs=0.004) and round(expected, 2) == 0.12


def test_rank_correlation_is_that_of_scipy_with_ties() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (20, 4, 4)) / 4, rng.uniform(size=(20, 4, 4))
    b[:10] = 0.3 * b[:10] + 0.7 * a[:10]
    expected = [spearmanr(i.ravel(), j.ravel()).statistic for i, j in zip(a, b, strict=True)]
    assert np.abs(rank_correlation(a, b) - expected).max() < 1e-12
    a[3], b[4, 0, 0] = 0.5, np.nan
    assert np.flatnonzero(np.isnan(rank_correlation(a, b))).tolist() == [3, 4]
    assert np.isnan(rank_correlation(np.full((2, 2, 2), np.nan), np.zeros((2, 2, 2)))).all()


def test_enlarged_maps_are_those_of_scikit_image() -> None:
    from skimage.transform import resize

    maps = np.random.default_rng(0).uniform(size=(3, 4, 5))
    expected: Any = [resize(m, (32, 20), order=1, mode="edge", anti_aliasing=False) for m in maps]
    assert np.abs(enlarged(maps, 32, 20) - expected).max() < 1e-12
    assert enlarged(maps[:0], 8, 8).shape == (0, 8, 8)
