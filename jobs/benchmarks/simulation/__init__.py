"""A search in virtual time: driver, coordinator and store are real, workers and Ray are not. See `scale.py`."""
