"""Models. In: shipped weights under resources/models where their card fits the recipe. Out: results/models/{model}/."""


rule model_provide:
    """Copy shipped weights, or train the model from its recipe with progress, seed and card."""
    input:
        shipped_card,
    output:
        weights="results/models/{model}/weights.safetensors",
        card="results/models/{model}/card.json",
    log:
        "results/logs/model_provide/{model}.log",
    benchmark:
        "results/benchmarks/model_provide/{model}.tsv"
    resources:
        mem_mb=2000,
    params:
        plan=plan_digest("model_provide"),
    script:
        "../scripts/model_provide.py"
