"""Observations. In: clean, shifted, purified or attacked images and a model. Out: results/observed/{model}/{batch}.json with
one part per cell: logits, features, predictions, distances, distortion and rate."""


rule observe:
    """A model looks once at every image of one batch of cells; defenses of attacked images are applied here."""
    input:
        images=lambda w: PLAN.observe_inputs(w.model, w.batch)["images"],
        shifted=lambda w: PLAN.observe_inputs(w.model, w.batch)["shifted"],
        purified=lambda w: PLAN.observe_inputs(w.model, w.batch)["purified"],
        attacked=lambda w: PLAN.observe_inputs(w.model, w.batch)["attacked"],
        weights="results/models/{model}/weights.safetensors",
        card="results/models/{model}/card.json",
    output:
        "results/observed/{model}/{batch}.json",
    log:
        "results/logs/observe/{model}/{batch}.log",
    benchmark:
        "results/benchmarks/observe/{model}/{batch}.tsv"
    retries: 1
    resources:
        mem_mb=2000,
        attempt=attempt_number,
    params:
        plan=plan_digest("observe"),
    script:
        "../scripts/observe.py"
