"""Training a learner on a summary, and differentiating through that training."""
