"""The processes of one run: how they are launched, how they connect, and their heartbeat."""
