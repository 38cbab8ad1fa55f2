"""A summary for other trainers: soft targets as Parquet, or sampled item sequences as text."""
