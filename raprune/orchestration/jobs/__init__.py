"""Jobs: a search on a running cluster: submission, packages, metadata, KubeRay, Grafana.

Imports `spec`, `report.formats` and `errors`. Open `client.py` first.
"""
