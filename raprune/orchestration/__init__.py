"""The only room that knows Ray: one driver, its searcher, the coordinator, and the workers' tasks."""
