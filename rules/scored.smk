"""Scores. In: observations (those of the fitting split too). Out: results/tables/samples/{model}.{batch}.parquet. No torch."""


rule score:
    """Every configured score of every cell of one batch; adding a score runs no model."""
    input:
        observed="results/observed/{model}/{batch}.json",
        fit=lambda w: [f"results/observed/{w.model}/clean.json"] if w.model in PLAN.fitted_models else [],
        card="results/models/{model}/card.json",
        images=lambda w: PLAN.observe_inputs(w.model, w.batch)["images"],
    output:
        "results/tables/samples/{model}.{batch}.parquet",
    log:
        "results/logs/score/{model}/{batch}.log",
    benchmark:
        "results/benchmarks/score/{model}/{batch}.tsv"
    resources:
        mem_mb=1000,
    params:
        plan=plan_digest("score"),
    script:
        "../scripts/score.py"
