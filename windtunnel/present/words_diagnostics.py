"""What diagnostics measure, in the words of a reader: a title, and one line on how to read each quantity."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """One quantity of a diagnostic: what it is called and how its mean is read."""

    title: str
    reading: str = ""


TITLES = {
    "sparsity": "adversarial sparsity",
    "min_perturbation": "smallest perturbation found",
    "local_linearity": "local linearity",
    "level_set": "level set traversal (blind spots)",
    "boundary_tilt": "boundary tilt",
    "gradient_direction": "gradient against random directions",
    "surrogate_gap": "stand-in against the real defense",
    "landscape": "loss landscape",
    "cam_drift": "drift of the class activation map",
    "deception": "reverse engineering of the attack",
    "realism": "realism of the defended images",
    "shift_consistency": "consistency under one-pixel shifts",
    "pipeline_contract": "facts about the pipeline (1 = yes)",
}
"""Diagnostics in the order of the table."""

_QUANTITIES = {
    "sparsity.sparsity": Quantity(
        "sparsity",
        "freedom PGD needs beside a random direction: pixel values (linf) or radians (l2); higher = adversarial images "
        "are rarer",
    ),
    "sparsity.spread": Quantity("sd over directions", "how much the sparsity differs between directions of one image"),
    "sparsity.vulnerable": Quantity("PGD succeeds", "share of clean-correct images; only these have a sparsity"),
    "sparsity.clean_correct": Quantity("clean-correct", "share of all images"),
    "min_perturbation.distance": Quantity(
        "distance", "to the nearest adversarial image found, in units of the pixel range; an upper bound of the truth"
    ),
    "min_perturbation.found": Quantity("found", "share of clean-correct images with an adversarial image in reach"),
    "local_linearity.e_lin": Quantity(
        "E_lin", "squared error of interpolating the loss between two points of the ball; 0 = linear there"
    ),
    "local_linearity.linearisation_error": Quantity(
        "error of one step", "how far the loss after one gradient step is from what the gradient promises; 0 = linear"
    ),
    "local_linearity.gamma": Quantity(
        "largest error found", "the largest linearisation error found in the ball; 0 = linear, large = curved or masked"
    ),
    "level_set.p_source": Quantity("confidence at the source", "p of the label on the clean image"),
    "level_set.rmse": Quantity(
        "RMSE to the target", "of the walk's end to an image of another class; near 0 = a blind spot"
    ),
    "level_set.linf": Quantity("L∞ distance to the target", "the same distance in the largest pixel difference"),
    "level_set.rmse_start": Quantity("RMSE before the walk", "what the RMSE to the target is to be compared with"),
    "level_set.path_confidence": Quantity(
        "least confidence on the path", "p of the label on the straight line to the walk's end; high = truly connected"
    ),
    "level_set.triangle_mean": Quantity(
        "mean confidence in the triangle", "p of the label between the source and the ends of two walks"
    ),
    "level_set.share_0": Quantity("triangle above p", "share of the triangle at least as confident as the source"),
    "level_set.share_1": Quantity("triangle above p - 0.1", "share of the triangle that loses less than 0.1"),
    "level_set.share_2": Quantity("triangle above p - 0.2", "share of the triangle that loses less than 0.2"),
    "level_set.share_3": Quantity("triangle above p - 0.3", "share of the triangle that loses less than 0.3"),
    "level_set.edge_mean": Quantity("mean confidence on the edges", "p of the label on the two edges at the source"),
    "level_set.edge_drop": Quantity("drop on the edges", "the largest loss of p on these edges; small = flat"),
    "boundary_tilt.tilt": Quantity(
        "tilt", "angle (radians) between the gradient and the difference of class means; 0 = along the data"
    ),
    "boundary_tilt.bend": Quantity(
        "bend", "angle (radians) between the gradient and the way to the boundary found; 0 = a linear model"
    ),
    "gradient_direction.beats_all": Quantity(
        "beats every random step", "share of images; below 0.9 the gradient is no guide, 0.05 is chance (19 draws)"
    ),
    "gradient_direction.gain": Quantity("gain of the gradient's step", "rise of the margin after one step of eps"),
    "gradient_direction.random_gain": Quantity("gain of the best random step", "what the gradient has to beat"),
    "surrogate_gap.fooled_stand_in": Quantity("fools the stand-in", "share of images made to fool the stand-in"),
    "surrogate_gap.fooled_real": Quantity(
        "fools the real defense", "share of the same images; more than 0.05 below the stand-in = a poor stand-in"
    ),
    "landscape.wrong_share": Quantity("wrong on the plane", "share of places around the image that are misclassified"),
    "landscape.wrong_share_ball": Quantity("wrong within eps", "the same within one eps along both axes"),
    "landscape.monotonicity": Quantity(
        "monotonicity", "share of steps along the gradient that raise the margin; 1 = honest, 1/2 = useless"
    ),
    "landscape.roughness": Quantity(
        "roughness", "mean second difference over the range of the margin; 0 = flat, large = shattered or masked"
    ),
    "landscape.gradient_rise": Quantity("rise along the gradient", "of the margin, one eps away"),
    "landscape.random_rise": Quantity("rise along random signs", "of the margin, one eps away; should be far smaller"),
    "cam_drift.iou_attacked": Quantity(
        "overlap, attacked", "strongest fifth of the map, clean against attacked image; 1 = unmoved, .12 = unrelated"
    ),
    "cam_drift.iou_defended": Quantity(
        "overlap, defended", "clean image against the defended attacked one; above the attacked overlap = moved back"
    ),
    "cam_drift.iou_defended_clean": Quantity(
        "overlap, defended clean", "clean image against itself behind the defense: what the defense alone moves"
    ),
    "cam_drift.rank_attacked": Quantity(
        "rank correlation, attacked", "of the places of both maps; not defined where no evidence is left"
    ),
    "cam_drift.rank_defended": Quantity("rank correlation, defended", "the same behind the defense; 1 = moved back"),
    "cam_drift.rank_defended_clean": Quantity(
        "rank correlation, defended clean", "what the defense alone moves; 1 = nothing"
    ),
    "cam_drift.fooled": Quantity("bare model fooled", "share of clean-correct images; the defense was not attacked"),
    "deception.l2": Quantity(
        "distance to the clean image", "of the defended attacked image (l2); below the perturbation's length = nearer"
    ),
    "deception.mse": Quantity("mean squared error", "of the same difference"),
    "deception.mae": Quantity("mean absolute error", "of the same difference"),
    "deception.l2_recovered": Quantity("length of what was removed", "l2 from the attacked image to the defended one"),
    "deception.l2_perturbation": Quantity("length of the perturbation", "l2 from the clean image to the attacked one"),
    "deception.pa_benign": Quantity(
        "answer restored", "share of defended attacked images with the clean image's answer; 1 = all"
    ),
    "deception.pa_adversarial": Quantity(
        "attack recovered", "share where what was removed, put on the clean image, gives the attacked answer; 1 = all"
    ),
    "deception.logits_benign": Quantity("logits off, restored", "l2 between the logits of defended and clean image"),
    "deception.logits_adversarial": Quantity(
        "logits off, recovered", "l2 between the logits of recovered and true attack"
    ),
    "deception.cam_benign": Quantity("overlap of maps, restored", "strongest fifth of the map; 1 = the clean one's"),
    "deception.cam_adversarial": Quantity(
        "overlap of maps, recovered", "strongest fifth of the map; 1 = the attacked one's"
    ),
    "deception.fooled": Quantity("bare model fooled", "share of clean-correct images; the defense was not attacked"),
    "realism.kid": Quantity(
        "KID", "unbiased distance of the defended images to the clean ones in this model's features; 0 = alike"
    ),
    "realism.frechet": Quantity(
        "Fréchet distance", "the same, biased upwards at small n: compare equal n and images only; 0 = unchanged"
    ),
    "shift_consistency.consistent": Quantity(
        "same answer", "share of the cyclic one-pixel shifts with the unshifted image's class; 1 = all"
    ),
    "shift_consistency.worst_case_correct": Quantity("right under every shift", "share of images; 1 = all"),
    "shift_consistency.clean_correct": Quantity("right unshifted", "share of images"),
    "shift_consistency.largest_change": Quantity("largest change of a logit", "under any shift; 0 = none"),
    "pipeline_contract.random": Quantity("random", "two forward passes on one image differ"),
    "pipeline_contract.softmax": Quantity("softmax outputs", "the model answers probabilities, not logits"),
    "pipeline_contract.train_mode": Quantity("train mode", "a module of the model is in train mode"),
    "pipeline_contract.batch_dependence": Quantity("depends on the batch", "an answer changes with its neighbours"),
    "pipeline_contract.dynamic": Quantity("dynamic", "gradients are taken inside the forward pass"),
    "pipeline_contract.state_changed": Quantity("changes its state", "weights or buffers differ after looking"),
}


def method_of(name: str) -> str:
    """The built-in diagnostic that a catalogue name (``sparsity-64``, ``local-linearity``) begins with, else ''."""
    plain = name.replace("-", "_")
    found = [m for m in TITLES if plain == m or plain.startswith(f"{m}_")]
    return max(found, key=len, default="")


def diagnostic(name: str) -> str:
    """A diagnostic in words; what its catalogue name adds stays in brackets, an unknown name stays as it is."""
    method = method_of(name)
    rest = name[len(method) :].strip("-_")
    return name if not method else TITLES[method] + (f" ({rest})" if rest else "")


def quantity(name: str, of: str) -> Quantity:
    """The words of a quantity ``of`` a diagnostic's catalogue ``name``; an unknown one is called by its own name."""
    return _QUANTITIES.get(f"{method_of(name)}.{of}", Quantity(of.replace("_", " ")))


def order(name: str, of: str) -> tuple[int, str, int, str]:
    """Sorts quantities as the diagnostics' own list does, unknown ones last."""
    titles, quantities, method = list(TITLES), list(_QUANTITIES), method_of(name)
    key = f"{method}.{of}"
    return (
        titles.index(method) if method else len(titles),
        name,
        quantities.index(key) if key in quantities else len(quantities),
        of,
    )


def known_quantities() -> dict[str, tuple[str, ...]]:
    """Built-in diagnostics and the quantities that have words."""
    return {m: tuple(k.partition(".")[2] for k in _QUANTITIES if k.partition(".")[0] == m) for m in TITLES}
