"""Models that count: no gradient, no training, seconds to make."""
