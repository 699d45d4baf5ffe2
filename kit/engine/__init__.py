"""Processes, transport and topologies of a deployment."""
