"""The library under the workflow, imported before the config is read; where it is missing, one sentence says what to do.

Out: jobs, lock, Plan, ConfigError, RESOURCES, NAMED_RUN. Nothing here computes.
"""

try:
    from windtunnel import RESOURCES, jobs, lock
    from windtunnel.catalogue import ConfigError
    from windtunnel.plan import Plan
except ModuleNotFoundError as error:
    raise WorkflowError(
        f"{error}: the library 'windtunnel' is not installed in this environment; run 'make' once, or 'pip install -e .'"
    )

jobs.use_this_python()

# A run with a config of its own is asked for by its target.
NAMED_RUN = jobs.named_run(("attacks_full", "defenses_full", "realism"))
