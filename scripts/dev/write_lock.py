"""Write requirements.lock and envs/windtunnel.yaml from this environment: names and versions, nothing local."""

import subprocess
import sys
from pathlib import Path

HEADER = (
    "# Written by 'make lock'. Names and versions only; used as pip's constraints, so a platform takes what it needs.\n"
)
NOT_OURS = ("windtunnel", "pip", "setuptools", "wheel")
NO_DEPS = ("torchattacks", "compressai", "torch-geometric", "pytorch-msssim")
"""What the Makefile installs with --no-deps: the metadata of torchattacks and compressai cannot be resolved."""


def frozen() -> list[str]:
    """``name==version`` of every installed package, without local suffixes such as +cpu and without this project."""
    out = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    lines = []
    for line in out.stdout.splitlines():
        name, _, version = line.partition("==")
        if version and name.lower() not in NOT_OURS:
            lines.append(f"{name}=={version.split('+')[0]}")
    return sorted(lines, key=str.lower)


def main() -> None:
    """Write both files beside pyproject.toml."""
    root = Path(__file__).resolve().parents[2]
    lines = frozen()
    (root / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n")
    pins = "".join(f"      - {line}\n" for line in lines if line.split("==")[0] not in NO_DEPS)
    (root / "envs" / "windtunnel.yaml").write_text(
        "# The one environment, for --sdm conda (not tested here): pins are those of requirements.lock.\n"
        f"# Cannot be resolved with current packages; on top: pip install --no-deps {' '.join(NO_DEPS)}\n"
        "channels:\n  - conda-forge\n  - nodefaults\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n" + pins
    )


if __name__ == "__main__":
    main()
