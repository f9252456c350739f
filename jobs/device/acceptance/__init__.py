"""The acceptance run on a GPU: sections that measure and judge, a guard around each, results as JSON and as tables."""
