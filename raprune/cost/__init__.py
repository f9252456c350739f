"""Cost: FLOPs and parameters in closed form, and latency from tables measured on the device.

Imports `channels` and the rooms above it. Open `flops.py` first.
"""
