"""The processes of one run.

``launcher`` (who started them) -> ``rendezvous`` (they connect) -> ``world`` (ranks, devices,
collectives), with the ``heartbeat`` of every rank; ``tasks`` shares independent work.
"""
