"""Models. In: shipped weights under resources/models where their card fits the recipe. Out: results/models/{model}/."""


rule model_copy:
    """Copy shipped weights, if they are those of their card: no library is imported for it."""
    input:
        weights=f"{RESOURCES}/models/{{model}}/weights.safetensors",
        card=f"{RESOURCES}/models/{{model}}/card.json",
    output:
        weights="results/models/{model}/weights.safetensors",
        card="results/models/{model}/card.json",
    log:
        "results/logs/model_copy/{model}.log",
    benchmark:
        "results/benchmarks/model_copy/{model}.tsv"
    wildcard_constraints:
        model="|".join(PLAN.shipped_models) or "(?!)",
    resources:
        mem_mb=100,
    params:
        plan=plan_digest("model_provide"),
    shell:
        "python -m windtunnel.models.folder {input.card:q} {output.card:q} > {log:q} 2>&1"


rule model_provide:
    """Train the model from its recipe with progress, seed and card, or take the user's own file."""
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


ruleorder: model_copy > model_provide
