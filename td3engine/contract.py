"""The contract between engine, worker and client: file names and exit codes. Imports no torch.

`td3engine.events` has the events that the engine prints; docs/contracts.md describes both.
"""

FACTORS_FILE = "summary.safetensors"
ITEMS_FILE = "items.parquet"
MANIFEST_FILE = "manifest.json"
CHECKPOINT_FILE = "checkpoint.pt"

SUMMARY_FILES = {
    FACTORS_FILE: "application/octet-stream",
    ITEMS_FILE: "application/vnd.apache.parquet",
    MANIFEST_FILE: "application/json",
}
"""Media type of each file of a summary."""

ARTIFACT_FILES = {**SUMMARY_FILES}
"""Media type of each file that a run's result lists: the summary's files, and any others."""

ARTIFACT_MEDIA_TYPES = tuple(sorted(set(ARTIFACT_FILES.values())))
"""For the OpenAPI document: a worker stores whatever a run lists."""

NORMALISER = ("-m", "td3engine.data.normalise")
"""Arguments of Python that normalise a log.

`SOURCE... TARGET --name=... --limits= --columns= --dialect=` follow, with a name for each source.
"""

ENGINE = ("-m", "td3engine.cli", "run")
"""Arguments of Python that run a job: `--data --config --out --checkpoint-seconds` follow."""

EXIT_UNUSABLE = 65
"""Log or configuration cannot be used; a retry does not help (EX_DATAERR)."""

EXIT_INTERRUPTED = 75
"""Stopped by a signal after writing a checkpoint (EX_TEMPFAIL)."""
