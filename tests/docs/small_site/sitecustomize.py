"""Makes presets small in every process that has this folder on `PYTHONPATH`.

Python imports a module of this name when it starts. See tests/docs/small_presets.py.
"""

from td3engine.config import presets
from tests.docs.small_presets import shrunk

presets.PRESETS.update(shrunk(presets.PRESETS))
