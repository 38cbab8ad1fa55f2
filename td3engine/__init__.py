"""TD3: distil an interaction log into a small synthetic summary that trains a sequential recommender.

Importing this package does not import torch: the service's API reads configurations and logs with it.
"""

__version__ = "0.1.0"
