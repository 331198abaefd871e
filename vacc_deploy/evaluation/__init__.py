"""How well a deployed model answers, beside its float model: tasks, scores, intervals."""
