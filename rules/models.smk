"""Models. In: shipped weights under resources/models where their card fits the recipe. Out: results/models/{model}/."""


def shipped_card(wildcards):
    """The card of shipped weights, if there is one: a new card provides the model again."""
    card = Path(workflow.basedir) / "resources" / "models" / wildcards.model / "card.json"
    return [str(card)] if card.is_file() else []


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
