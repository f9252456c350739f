"""Files that a machine without a network needs for the acceptance run: Ray, wheels, data, the commit."""
