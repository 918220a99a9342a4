"""Models, and the networks that defenses carry. In: shipped weights under resources/ where their card fits the recipe.
Out: results/models/{model}/, results/networks/{network}/."""


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


rule network_copy:
    """Copy the shipped weights of a network that a defense carries, if they are those of their card."""
    input:
        weights=f"{RESOURCES}/networks/{{network}}/weights.safetensors",
        card=f"{RESOURCES}/networks/{{network}}/card.json",
    output:
        weights="results/networks/{network}/weights.safetensors",
        card="results/networks/{network}/card.json",
    log:
        "results/logs/network_copy/{network}.log",
    benchmark:
        "results/benchmarks/network_copy/{network}.tsv"
    wildcard_constraints:
        network="|".join(PLAN.shipped_networks) or "(?!)",
    priority: 20
    resources:
        mem_mb=100,
    params:
        plan=plan_digest("network_provide"),
    shell:
        "python -m windtunnel.models.folder {input.card:q} {output.card:q} > {log:q} 2>&1"


rule network_provide:
    """Train a network that a defense carries, or take its file, whose digest the catalogue declares."""
    input:
        lambda w: PLAN.network_inputs(w.network),
    output:
        weights="results/networks/{network}/weights.safetensors",
        card="results/networks/{network}/card.json",
    log:
        "results/logs/network_provide/{network}.log",
    benchmark:
        "results/benchmarks/network_provide/{network}.tsv"
    priority: 20
    resources:
        mem_mb=3000,
    params:
        plan=plan_digest("network_provide"),
    script:
        "../scripts/network_provide.py"


ruleorder: model_copy > model_provide
ruleorder: network_copy > network_provide
