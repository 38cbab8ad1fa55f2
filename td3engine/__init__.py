"""TD3: distil an interaction log into a small summary that trains a sequential recommender.

Importing this package does not import torch: the API reads configurations and logs with it.
"""

__version__ = "0.1.0"
