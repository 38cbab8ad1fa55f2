"""The folder of a summary, also where the summary is the zip that the service sends."""

import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from td3engine.contract import SUMMARY_FILES
from td3engine.errors import BundleError


@contextmanager
def summary_folder(path: Path) -> Iterator[Path]:
    """The folder itself, or one that a zip's three files have been unpacked to for a while.

    Raises:
        BundleError: the file is no zip, or lacks one of the files of a summary.
    """
    if not path.is_file():
        yield path
        return
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            for name in SUMMARY_FILES:
                archive.extract(name, folder)
            yield Path(folder)
    except KeyError as error:
        raise BundleError(f"{path} lacks a file of a summary: {error.args[0]}") from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise BundleError(f"{path} is neither a summary's folder nor its zip: {error}") from error
