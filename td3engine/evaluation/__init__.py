"""How good a summary is: learners and baselines on test, as rows of tables."""
