"""Purified image sets that need no model. In: a data set's clean (or shifted) sets. Out: results/defended/{dataset}/{family}.json."""


rule purify_shared:
    """The image sets of one data set through all strengths of one defense family, once for all models."""
    input:
        lambda w: PLAN.purify_inputs(w.dataset, w.family),
    output:
        "results/defended/{dataset}/{family}.json",
    log:
        "results/logs/purify_shared/{dataset}/{family}.log",
    benchmark:
        "results/benchmarks/purify_shared/{dataset}/{family}.tsv"
    priority: 20  # short, and what the models look at comes out of it: a late one would leave cores idle at the end
    retries: 1
    resources:
        mem_mb=1000,
        attempt=attempt_number,
    params:
        plan=plan_digest("purify_shared"),
    script:
        "../scripts/purify_shared.py"
