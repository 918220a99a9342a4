"""Scores. In: observations (those of the fitting split too). Out: results/tables/samples/{group}.{batch}.parquet. No torch."""


rule score:
    """Every configured score of every cell of one batch; adding a score runs no model."""
    input:
        observed="results/observed/{group}/{batch}.json",
        fit=lambda w: PLAN.fit_inputs(w.group),
        cards=lambda w: PLAN.observe_inputs(w.group, w.batch)["cards"],
        images=lambda w: PLAN.observe_inputs(w.group, w.batch)["images"],
        shifted=lambda w: PLAN.observe_inputs(w.group, w.batch)["shifted"],
    output:
        "results/tables/samples/{group}.{batch}.parquet",
    log:
        "results/logs/score/{group}/{batch}.log",
    benchmark:
        "results/benchmarks/score/{group}/{batch}.tsv"
    priority: 6  # before further observations: what is left at the end is short then
    resources:
        mem_mb=1000,
    params:
        plan=plan_digest("score"),
    script:
        "../scripts/score.py"
