"""Purified image sets that need no model. In: a clean (or shifted) image set. Out: results/defended/{set}/{family}.json."""


rule purify_shared:
    """One image set through all strengths of one defense family, once for all models."""
    input:
        lambda w: PLAN.purify_inputs(w.set, w.family),
    output:
        "results/defended/{set}/{family}.json",
    log:
        "results/logs/purify_shared/{set}/{family}.log",
    benchmark:
        "results/benchmarks/purify_shared/{set}/{family}.tsv"
    retries: 1
    resources:
        mem_mb=1000,
        attempt=attempt_number,
    params:
        plan=plan_digest("purify_shared"),
    script:
        "../scripts/purify_shared.py"
