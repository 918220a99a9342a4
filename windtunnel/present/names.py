"""What a run always prints, by name: the workflow declares these files, so every run writes each of them.

What a run does not hold is said inside the table or figure ("not in this run"), never by a missing file.
"""

FIGURE_NAMES = (
    "sequential_jpeg",
    "rounds",
    "accuracy_against_epsilon",
    "convergence",
    "perturbation",
    "rate_accuracy",
    "rate_distortion",
    "certified",
    "gallery",
    "gallery_defenses",
    "score_histograms",
    "roc",
    "ood_defended",
    "reliability",
    "transfer",
    "landscape",
)
TABLE_NAMES = (
    "robust_accuracy",
    "batteries",
    "transfer",
    "defenses",
    "defense_costs",
    "realism",
    "shifts",
    "certified",
    "diagnostics",
    "ood",
    "ood_sets",
    "ood_paired",
    "ood_defended",
    "checks",
    "failed",
)
