"""Observations. In: clean, shifted, purified or attacked images and a model. Out: results/observed/{group}/{batch}.json with
one part per cell: logits, features, predictions, distances, distortion and rate."""


rule observe:
    """The training seeds of a model look once at every image of one batch of cells; defenses of attacked images are applied here."""
    input:
        images=lambda w: PLAN.observe_inputs(w.group, w.batch)["images"],
        shifted=lambda w: PLAN.observe_inputs(w.group, w.batch)["shifted"],
        purified=lambda w: PLAN.observe_inputs(w.group, w.batch)["purified"],
        attacked=lambda w: PLAN.observe_inputs(w.group, w.batch)["attacked"],
        networks=lambda w: PLAN.observe_inputs(w.group, w.batch)["networks"],
        weights=lambda w: PLAN.observe_inputs(w.group, w.batch)["weights"],
        cards=lambda w: PLAN.observe_inputs(w.group, w.batch)["cards"],
    output:
        "results/observed/{group}/{batch}.json",
    log:
        "results/logs/observe/{group}/{batch}.log",
    benchmark:
        "results/benchmarks/observe/{group}/{batch}.tsv"
    priority: 5
    retries: 1
    resources:
        mem_mb=2000,
        attempt=attempt_number,
    params:
        plan=plan_digest("observe"),
    script:
        "../scripts/observe.py"
