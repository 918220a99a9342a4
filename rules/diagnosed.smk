"""Measurements around single images. In: an image set and a model. Out: results/diagnosed/{model}/{set}.json, one part each."""


rule diagnose:
    """All diagnostics of one (model, image set): linearity, sparsity, slices, and the probes that checks read."""
    input:
        images=lambda w: PLAN.diagnostic_inputs(w.model, w.set),
        weights="results/models/{model}/weights.safetensors",
        card="results/models/{model}/card.json",
    output:
        "results/diagnosed/{model}/{set}.json",
    log:
        "results/logs/diagnose/{model}/{set}.log",
    benchmark:
        "results/benchmarks/diagnose/{model}/{set}.tsv"
    priority: 10
    retries: 1
    resources:
        mem_mb=2000,
        attempt=attempt_number,
    params:
        plan=plan_digest("diagnose"),
    script:
        "../scripts/diagnose.py"
