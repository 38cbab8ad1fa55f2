"""The formats that logs are read in. A new one is a module of this folder and a line here."""

from td3engine.data.readers import jsonl, parquet, text
from td3engine.data.readers.format import Format

# In the order in which they are asked whether a file without a telling name looks like theirs.
FORMATS: tuple[Format, ...] = (
    *parquet.FORMATS,
    *jsonl.FORMATS,
    *text.FORMATS,
)
