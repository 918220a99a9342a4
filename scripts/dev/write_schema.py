"""Write config/config.schema.json, the JSON Schema of a config, from the typed classes."""

import json
from pathlib import Path

from windtunnel.catalogue import json_schema

if __name__ == "__main__":
    path = Path(__file__).resolve().parents[2] / "config" / "config.schema.json"
    path.write_text(json.dumps(json_schema(), indent=1, sort_keys=True) + "\n")
