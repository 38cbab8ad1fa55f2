"""What app and worker know about the engine's programs: commands, exit codes and file names."""

# Reads an uploaded log: `python -m MODULE SOURCE TARGET --name=... --limits=... --columns=...`.
NORMALISER_MODULE = "td3engine.interactions"
# Exit code of the engine and of the normaliser: they refuse their input, and a retry cannot help.
EXIT_REFUSED = 65
# Code of the one refusal that concerns the worker: it lacks the device that the job asks for.
ERROR_NO_DEVICE = "no_device"
# The engine resumes from this file in its output folder.
CHECKPOINT_FILE = "checkpoint.pt"
# Artifacts that make up a summary: the files of the zip, in this order.
SUMMARY_FILES = ("manifest.json", "items.parquet", "summary.safetensors")
# Media types of artifacts. They are listed for the OpenAPI document only: the worker stores
# whatever files the engine's `result` event lists, and the API serves them under its media types.
ARTIFACT_MEDIA_TYPES = (
    "application/json",
    "application/octet-stream",
    "application/vnd.apache.parquet",
)
